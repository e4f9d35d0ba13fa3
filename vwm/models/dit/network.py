"""The diffusion transformer: noisy latents, a signal level a frame and actions in, their cleaned form out.

DiT (arXiv 2212.09748) in the factored form of Oasis and Dreamer 4 (arXiv 2509.24527): each frame has its own signal
level, and a vector made of that level, the step size and the action that led to the frame modulates every layer.

Because attention is causal in time, a past frame's keys and values never change. Playing keeps them, and each sampling
step runs the tokens of the new frame alone. That is exact, not an approximation.

Agent tokens (Dreamer 4, section 3.3) stand beside a frame's others: they attend to all tokens of their frame and, in
time, to the agent tokens of the past, and nothing attends to them. What an agent is after thus never leaks into what
the world does next, and a world that has learned goes on unchanged when it is given some.

Legend: b batch, t time, h w c of the latents, n tokens a frame, d width, p patch side, k kinds of step size.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from vwm.models.dit.noise_schedule import PREDICTION_TYPES, PredictionType
from vwm.nn.actions import ActionEmbedding
from vwm.nn.attention import KeyValueCache
from vwm.nn.pixels import patch_grid
from vwm.nn.space_time import TransformerState, clean_context_mask
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class NoisyFrames(NamedTuple):
    """Frames with noise, and what is known of them.

    Attributes:
        latents: float [b, t, h, w, c].
        signal: float [b, t], from 0 (noise) to 1 (data).
        step: int64 [b, t], how often the whole way is halved to the step that is to be taken; None for networks that
            know no step sizes.
        lead: float [b, t, d], the actions that led to the frames; see ``DiT.lead``.
    """

    latents: Tensor
    signal: Tensor
    step: Tensor | None
    lead: Tensor


def select_clips(noisy: NoisyFrames, clips: slice) -> NoisyFrames:
    """Some clips of a batch."""
    step = None if noisy.step is None else noisy.step[clips]
    return NoisyFrames(noisy.latents[clips], noisy.signal[clips], step, noisy.lead[clips])


class DiTOutput(NamedTuple):
    """What the network says.

    Attributes:
        prediction: float [b, t, h, w, c].
        features: [b, t, d] of each frame, from which outcomes and policies are read: the mean of the agent tokens',
            where there are some, else of all tokens'.
    """

    prediction: Tensor
    features: Tensor


class DiT(ModelMixin, ConfigMixin):
    """A space-time diffusion transformer over a tokenizer's latents.

    Args:
        grid: (h, w) of a frame's latents.
        channels: c.
        patch_size: side of the square of latents that one token stands for.
        num_actions: number of discrete actions; or the sizes of several discrete parts.
        action_dims: dimensions of continuous actions. Both 0: a world without actions. Both set, or several discrete
            parts: see ``ActionEmbedding``; such a world can be trained and sampled, but not yet played.
        prediction: what the network says; see ``vwm.models.dit.noise_schedule``.
        num_step_sizes: how many sizes of sampling step the network knows (shortcut models): sizes 1, 1/2, 1/4, ... of
            the way; 0 for none.
        width: d.
        depth: layers, each one attention and one feed-forward.
        heads: attention heads.
        window: frames that attention spans.
        kv_heads, attention, time_every, causal, mlp, soft_cap: see ``VideoTransformer``.
        registers: tokens a frame beside those of the picture, in which the network may keep what it likes.
        agent_tokens: tokens a frame that see everything and are seen by nothing but their own later selves.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (8, 8),
        channels: int = 16,
        patch_size: int = 1,
        num_actions: int | list[int] = 0,
        action_dims: int = 0,
        prediction: PredictionType = "velocity",
        num_step_sizes: int = 0,
        width: int = 256,
        depth: int = 8,
        heads: int = 8,
        window: int = 16,
        kv_heads: int | None = None,
        attention: Literal["factored", "full"] = "factored",
        time_every: int = 2,
        causal: bool = True,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        soft_cap: float | None = None,
        registers: int = 4,
        agent_tokens: int = 0,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTION_TYPES:
            raise ValueError(f"prediction={prediction!r} must be one of {', '.join(PREDICTION_TYPES)}")
        if width % 2:
            raise ValueError(f"width={width} must be even")
        if agent_tokens and (attention == "full" or not causal):
            raise ValueError(
                f"agent_tokens={agent_tokens} need attention='factored' and causal=True, got {attention!r} and {causal}"
            )
        self.grid, self.channels, self.patch_size = (int(grid[0]), int(grid[1])), channels, patch_size
        self.prediction, self.num_step_sizes, self.registers = prediction, num_step_sizes, registers
        rows, columns = patch_grid(self.grid, patch_size, "grid")
        values = channels * patch_size**2
        self.embed = nn.Linear(values, width)
        self.places = nn.Parameter(torch.randn(registers + rows * columns, width) * 0.02)
        coordinates = torch.cat((grid_coordinates(rows, columns, registers), torch.zeros(agent_tokens, 2)))
        self.register_buffer("coordinates", coordinates, persistent=False)
        mask = agent_token_mask(len(coordinates), agent_tokens) if agent_tokens else None
        self.register_buffer("space_mask", mask, persistent=False)
        self.embed_signal = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_step = nn.Embedding(num_step_sizes, width) if num_step_sizes else None
        choices = list(num_actions) if isinstance(num_actions, list) else [num_actions] if num_actions else []
        self.embed_action = ActionEmbedding(choices, action_dims, width) if choices or action_dims else None
        self.no_action = nn.Parameter(torch.zeros(width))
        self.transformer = VideoTransformer(
            width,
            depth,
            heads,
            window,
            kv_heads,
            attention,
            time_every,
            causal,
            mlp,
            soft_cap,
            conditioned=True,
        )
        self.head = nn.Linear(width, values)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.agents = nn.Parameter(torch.randn(agent_tokens, width) * 0.02) if agent_tokens else None

    def lead(self, actions: Tensor | None, batch: int, frames: int, known: Tensor | None = None) -> Tensor:
        """Vectors of the actions that led to each frame of clips; the first frame's is not known.

        Args:
            actions: [b, t-1] or [b, t-1, a], ``actions[:, i]`` leads from frame i to i+1; None where there are none.
            batch: b.
            frames: t.
            known: bool, broadcastable to [b, t-1]: False where the action is not known, or is to be hidden.

        Returns:
            float [b, t, d].
        """
        nothing = self.no_action.expand(batch, frames, -1)
        if actions is None or frames == 1:
            return nothing
        return torch.cat((nothing[:, :1], self.embed_actions(actions, known)), dim=1)

    def embed_actions(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Vectors of actions: [b, t] or [b, t, a] -> [b, t, d]. Raises ValueError in a world without actions."""
        if self.embed_action is None:
            raise ValueError("this network knows no actions: set dynamics.num_actions or dynamics.action_dims")
        vectors = self.embed_action(actions)
        return vectors if known is None else torch.where(known[..., None], vectors, self.no_action)

    def forward(self, noisy: NoisyFrames, past: NoisyFrames | None = None) -> DiTOutput:
        """What the network says of noisy frames.

        Args:
            noisy: frames 0..t-1, each seeing those before it as noisy as they are (diffusion forcing); or, with a
                past, frames 1..t-1.
            past: frames 0, 1, ... nearly without noise. Each noisy frame then sees of the past those before it, and
                itself: what it will see in play.

        Returns:
            Of the noisy frames; with a past, ``features`` are of the past's frames.
        """
        if past is None:
            condition = self._condition(noisy)
            x = self.transformer(self._tokens(noisy), self.coordinates, condition, space_mask=self.space_mask)
            return DiTOutput(self._predict(x), self._features(x))
        # Both kinds of frame go through the transformer as one long clip: first the past, then the noisy frames.
        seen, frames = past.latents.shape[1], noisy.latents.shape[1]
        x = torch.cat((self._tokens(past), self._tokens(noisy)), dim=1)
        condition = torch.cat((self._condition(past), self._condition(noisy)), dim=1)
        positions, mask = clean_context_mask(seen, frames, self.transformer.window, x.device)
        x = self.transformer(x, self.coordinates, condition, positions, mask, self.space_mask)
        return DiTOutput(self._predict(x[:, seen:]), self._features(x[:, :seen]))

    def init_state(self, batch: int) -> TransformerState:
        """The state of worlds in which no frame has been seen."""
        return self.transformer.init_state(batch, len(self.coordinates))

    def step(self, state: TransformerState, noisy: NoisyFrames) -> tuple[TransformerState, DiTOutput]:
        """The next frames of each world."""
        x, state = self.transformer.step(
            self._tokens(noisy), state, self.coordinates, self._condition(noisy), self.space_mask
        )
        return state, DiTOutput(self._predict(x), self._features(x))

    def look(self, state: TransformerState, noisy: NoisyFrames) -> Tensor:
        """The prediction of ``step``, float [b, t, h, w, c]; agent tokens, which it does not rest on, are not run."""
        world = len(self.places)
        blocks = tuple(KeyValueCache(keys[:, :world], values[:, :world]) for keys, values in state.blocks)
        x, _ = self.transformer.step(
            self._tokens(noisy)[:, :, :world],
            TransformerState(state.position, blocks),
            self.coordinates[:world],
            self._condition(noisy),
        )
        return self._predict(x)

    def _tokens(self, noisy: NoisyFrames) -> Tensor:
        expected = (*self.grid, self.channels)
        if tuple(noisy.latents.shape[2:]) != expected:
            raise ValueError(
                f"latents must be [b, t, {', '.join(map(str, expected))}], got {list(noisy.latents.shape)}"
            )
        p = self.patch_size
        patches = rearrange(noisy.latents, "b t (h p) (w q) c -> b t (h w) (p q c)", p=p, q=p)
        x = self.embed(patches.to(self.embed.weight.dtype))
        spare = x.new_zeros(*x.shape[:2], self.registers, x.shape[-1])
        x = torch.cat((spare, x), dim=2) + self.places.to(x.dtype)
        if self.agents is None:
            return x
        return torch.cat((x, self.agents.to(x.dtype).expand(*x.shape[:2], -1, -1)), dim=2)

    def _condition(self, noisy: NoisyFrames) -> Tensor:
        vector = (
            self.embed_signal(_sinusoidal_embedding(noisy.signal, self.config.width).to(self.places.dtype)) + noisy.lead
        )
        if self.embed_step is not None:
            if noisy.step is None:
                raise ValueError("this network knows step sizes: give noisy.step")
            vector = vector + self.embed_step(noisy.step)
        return nn.functional.silu(vector)

    def _predict(self, x: Tensor) -> Tensor:
        patches, p = self.head(x[:, :, self.registers : len(self.places)]), self.patch_size
        return rearrange(patches, "b t (h w) (p q c) -> b t (h p) (w q) c", h=self.grid[0] // p, p=p, q=p)

    def _features(self, x: Tensor) -> Tensor:
        return (x if self.agents is None else x[:, :, len(self.places) :]).mean(dim=2)


def agent_token_mask(tokens: int, unseen: int) -> Tensor:
    """bool [n, n] of what tokens look at: all at all, but nothing at the ``unseen`` last ones save these themselves."""
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    mask[:-unseen, -unseen:] = False
    return mask


def _sinusoidal_embedding(level: Tensor, width: int) -> Tensor:
    """Sines and cosines of a level between 0 and 1: [b, t] -> float [b, t, width]; periods from 100 down to 0.1."""
    frequencies = 1000 ** torch.linspace(0, 1, width // 2, device=level.device, dtype=torch.float64)
    turns = level.to(torch.float64)[..., None] * frequencies * (2 * math.pi / 100)
    return torch.cat((turns.sin(), turns.cos()), dim=-1).to(level.dtype)
