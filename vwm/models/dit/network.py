"""The diffusion transformer: denoises latent frames, given a signal level per frame and actions.

DiT (arXiv 2212.09748) in the factored form of Oasis and Dreamer 4 (arXiv 2509.24527): each frame has its own signal
level, and an embedding of that level, the step size and the previous action modulates every layer.

Because attention is causal in time, the keys and values of past frames never change. In play they are cached, and each
sampling step processes only the tokens of the new frame. This is exact, not an approximation.

Agent tokens (Dreamer 4, section 3.3) are additional tokens of a frame: they attend to all tokens of their frame and, in
time, to past agent tokens, and no other token attends to them. The task of an agent therefore cannot influence the
predicted dynamics, and adding agent tokens to a trained network does not change its predictions. Where there
are several tasks, an embedding of the task is added to the agent tokens, so that what reads them depends on it.

Where a latent holds k video frames, "frame" below means latent frame, and the k actions that lead from the last video
frame of one latent to that of the next are pooled into one condition.

Legend: b batch, t time, h w c of the latents, n tokens per frame, d width, p patch side, k video frames per latent.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.dit.noise_schedule import PREDICTION_TYPES, PredictionType
from vwm.nn.action_pooling import ActionPooling, ActionPoolingKind, pool_action_embeddings
from vwm.nn.actions import make_action_embedding
from vwm.nn.attention_kernels import KeyValueCache
from vwm.nn.attention_span import AttentionSpan
from vwm.nn.context_parallel import ContextGroup, DividedFrames, divide_frames, join_frames, own_frames
from vwm.nn.pixels import patch_grid
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class NoisyFrames(NamedTuple):
    """Noisy frames and their conditions.

    Attributes:
        latents: float [b, t, h, w, c].
        signal: float [b, t], signal level from 0 (noise) to 1 (data).
        step_index: int64 [b, t], i for a sampling step of size 2**-i; None for networks without step sizes.
        action_embedding: float [b, t, d], embeddings of the actions that led to the frames; see
            ``DiT.embed_previous_actions``.
        task: int64 [b, t], which the agent tokens get; None where there are no tasks, or what reads the agent tokens is
            not used.
    """

    latents: Tensor
    signal: Tensor
    step_index: Tensor | None
    action_embedding: Tensor
    task: Tensor | None = None


def select_clips(noisy: NoisyFrames, clips: slice | Tensor) -> NoisyFrames:
    """Select clips of a batch, all of them or by their indices, int64."""
    return NoisyFrames(
        latents=noisy.latents[clips],
        signal=noisy.signal[clips],
        step_index=None if noisy.step_index is None else noisy.step_index[clips],
        action_embedding=noisy.action_embedding[clips],
        task=None if noisy.task is None else noisy.task[clips],
    )


def select_own_frames(noisy: NoisyFrames, division: DividedFrames | None) -> NoisyFrames:
    """Select this process's frames of a segment that is divided over processes; all without a division."""
    return NoisyFrames(
        latents=own_frames(noisy.latents, division),
        signal=own_frames(noisy.signal, division),
        step_index=None if noisy.step_index is None else own_frames(noisy.step_index, division),
        action_embedding=own_frames(noisy.action_embedding, division),
        task=None if noisy.task is None else own_frames(noisy.task, division),
    )


class DiTOutput(NamedTuple):
    """Output of the network.

    Attributes:
        prediction: float [b, t, h, w, c], of the network's ``PredictionType``.
        features: [b, t, d], inputs of the outcome and policy heads: the mean over the agent tokens of a frame, or over
            all tokens if there are no agent tokens.
    """

    prediction: Tensor
    features: Tensor


def join_outputs(out: DiTOutput, division: DividedFrames | None) -> DiTOutput:
    """Join the frames of all processes: of the first segment in the features, and of the last in the prediction."""
    return DiTOutput(join_frames(out.prediction, division, segment=-1), join_frames(out.features, division))


class DiT(ModelMixin, ConfigMixin):
    """Space-time diffusion transformer over the latents of a tokenizer.

    Args:
        grid: (h, w) of the latents of a frame.
        channels: c.
        patch_size: side of the square of latents that forms one token.
        num_actions, action_dims, action_parts: discrete, continuous or composite actions; see
            ``vwm.nn.actions.make_action_embedding``. Without any, the model has no actions.
        prediction: the network's output; see ``vwm.models.dit.noise_schedule``.
        num_step_sizes: number of sampling step sizes 1, 1/2, 1/4, ... of a shortcut model; 0 for other models.
        width: d.
        depth: number of layers, each with one attention and one feed-forward.
        heads: number of attention heads.
        window: number of frames that attention spans.
        kv_heads, attention, time_every, causal, mlp, soft_cap: see ``VideoTransformer``.
        registers: number of additional tokens per frame that carry no input (arXiv 2309.16588).
        agent_tokens: number of agent tokens per frame.
        num_tasks: number of tasks whose embeddings the agent tokens get; 0 without any. The embeddings are 0 at first.
        frames_per_latent: k, the tokenizer's ``time_compression``. The first latent holds one video frame, later ones
            k, so that latent i holds the video frames k (i-1) + 1 to k i, to which the actions k (i-1) to k i - 1 lead.
        action_pooling: how the k actions of a latent become one condition, see ``ActionPooling``; without effect for
            k = 1.
        sink_frames: the first frames of a stream to which all later ones attend, beyond the window too.
        memory_frames: number of frames to which attention extends beyond the window, of which only every
            ``memory_every``-th is kept; see ``AttentionSpan``.
        memory_every: see ``memory_frames``.

    Raises:
        ValueError: a value out of range, an unknown ``prediction``, an odd ``width``, agent tokens without causal
            factored attention, or tasks without agent tokens.

    Attributes:
        context_group: the processes over which ``forward`` divides the frames of clips; None computes all frames here.
    """

    context_group: ContextGroup | None = None

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (8, 8),
        channels: int = 16,
        patch_size: int = 1,
        num_actions: int = 0,
        action_dims: int = 0,
        action_parts: list[dict[str, Any]] | None = None,
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
        frames_per_latent: int = 1,
        action_pooling: ActionPoolingKind = "learned",
        sink_frames: int = 0,
        memory_frames: int = 0,
        memory_every: int = 4,
        num_tasks: int = 0,
    ) -> None:
        super().__init__()
        check_positive(frames_per_latent=frames_per_latent)
        if num_tasks and not agent_tokens:
            raise ValueError(f"num_tasks={num_tasks} are embedded in agent tokens: set agent_tokens to 1 or more")
        _check_settings(prediction, width, agent_tokens, factored=attention == "factored", causal=causal)
        self.grid = (int(grid[0]), int(grid[1]))
        self.channels = channels
        self.patch_size = patch_size
        self.prediction = prediction
        self.num_step_sizes = num_step_sizes
        self.registers = registers
        self.frames_per_latent = frames_per_latent
        rows, columns = patch_grid(self.grid, patch_size, "grid")
        patch_values = channels * patch_size**2
        self.embed = nn.Linear(patch_values, width)
        self.places = nn.Parameter(torch.empty(registers + rows * columns, width).normal_(std=0.02))
        coordinates = grid_coordinates(rows, columns, before=registers, after=agent_tokens)
        self.register_buffer("coordinates", coordinates, persistent=False)
        mask = agent_token_mask(len(coordinates), agent_tokens) if agent_tokens else None
        self.register_buffer("space_mask", mask, persistent=False)
        self.embed_signal = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_step = nn.Embedding(num_step_sizes, width) if num_step_sizes else None
        self.embed_action = make_action_embedding(width, num_actions, action_dims, action_parts)
        self.no_action = nn.Parameter(torch.zeros(width))
        pools = frames_per_latent > 1 and self.embed_action is not None
        self.pool_actions = ActionPooling(frames_per_latent, width, action_pooling) if pools else None
        self.transformer = VideoTransformer(
            width=width,
            depth=depth,
            heads=heads,
            window=AttentionSpan(window, sink_frames, memory_frames, memory_every),
            kv_heads=kv_heads,
            attention=attention,
            time_every=time_every,
            causal=causal,
            mlp=mlp,
            soft_cap=soft_cap,
            conditioned=True,
        )
        self.head = nn.Linear(width, patch_values)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.agents = nn.Parameter(torch.empty(agent_tokens, width).normal_(std=0.02)) if agent_tokens else None
        self.tasks = nn.Parameter(torch.zeros(num_tasks, width)) if num_tasks else None

    def embed_previous_actions(
        self, actions: Tensor | None, batch: int, frames: int, known: Tensor | None = None
    ) -> Tensor:
        """Embed the action that led to each frame of clips; that of the first frame is unknown.

        Args:
            actions: [b, (t-1) k] or [b, (t-1) k, a], ``actions[:, i]`` leads from video frame i to i+1; None for
                unknown actions.
            batch: b.
            frames: t.
            known: bool, broadcastable to [b, (t-1) k]: False where the action is unknown or hidden; [b, (t-1) k, p] for
                the parts of composite actions.

        Returns:
            float [b, t, d].
        """
        unknown = self.no_action.expand(batch, frames, -1)
        if actions is None or frames == 1:
            return unknown
        return torch.cat((unknown[:, :1], self.embed_actions(actions, known)), dim=1)

    def embed_actions(self, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Embed actions: [b, t k] or [b, t k, a] -> [b, t, d]. Raises ValueError if the network has no actions."""
        if self.embed_action is None:
            raise ValueError(
                "this network has no actions: set dynamics.num_actions, dynamics.action_dims or dynamics.action_parts"
            )
        embedding = self.embed_action.embed(actions, known, self.no_action)
        return pool_action_embeddings(self.pool_actions, embedding, self.no_action)

    def forward(self, noisy: NoisyFrames, past: NoisyFrames | None = None) -> DiTOutput:
        """Predict from noisy frames.

        Args:
            noisy: frames 0..t-1, each conditioned on the noisy frames before it (diffusion forcing); or, with ``past``,
                frames 1..t-1.
            past: frames 0, 1, ... with little noise. If given, a noisy frame attends to the past frames before it and
                to itself, as in play.

        Returns:
            The prediction for the noisy frames, and features of the noisy frames or, with ``past``, of the past frames.
        """
        frames = noisy.latents.shape[1]
        if past is None:
            division = divide_frames(self.context_group, frames)
            noisy = select_own_frames(noisy, division)
            x, condition = self._tokens(noisy), self._condition(noisy)
            x = self.transformer(x, self.coordinates, condition, space_mask=self.space_mask, division=division)
            return join_outputs(DiTOutput(self._predict(x), self._features(x)), division)
        # Past and noisy frames are processed as one long clip.
        num_past = past.latents.shape[1]
        positions, mask = self.transformer.span.clean_context(num_past, frames, noisy.latents.device)
        division = divide_frames(self.context_group, num_past, frames)
        past, noisy = select_own_frames(past, division), select_own_frames(noisy, division)
        num_past = past.latents.shape[1]
        x = torch.cat((self._tokens(past), self._tokens(noisy)), dim=1)
        condition = torch.cat((self._condition(past), self._condition(noisy)), dim=1)
        x = self.transformer(x, self.coordinates, condition, positions, mask, self.space_mask, division)
        return join_outputs(DiTOutput(self._predict(x[:, num_past:]), self._features(x[:, :num_past])), division)

    def init_state(self, batch: int) -> TransformerState:
        """Return the state before the first frame."""
        return self.transformer.init_state(batch, len(self.coordinates))

    def step(self, state: TransformerState, noisy: NoisyFrames) -> tuple[TransformerState, DiTOutput]:
        """Process the next frames; return the state after them and the output."""
        x, state = self.transformer.step(
            self._tokens(noisy), state, self.coordinates, self._condition(noisy), self.space_mask
        )
        return state, DiTOutput(self._predict(x), self._features(x))

    def denoise(self, state: TransformerState, noisy: NoisyFrames) -> Tensor:
        """Return the prediction of ``step``, float [b, t, h, w, c], without advancing the state.

        Agent tokens are skipped, because the prediction does not depend on them.
        """
        tokens = len(self.places)
        blocks = tuple(KeyValueCache(keys[:, :tokens], values[:, :tokens]) for keys, values in state.blocks)
        x = self.transformer.predict(
            self._tokens(noisy)[:, :, :tokens],
            TransformerState(state.position, blocks),
            self.coordinates[:tokens],
            self._condition(noisy),
        )
        return self._predict(x)

    def _tokens(self, noisy: NoisyFrames) -> Tensor:
        """[b, t, n, d]: registers, patches, agent tokens."""
        expected = (*self.grid, self.channels)
        if tuple(noisy.latents.shape[2:]) != expected:
            raise ValueError(
                f"latents must be [b, t, {', '.join(map(str, expected))}], got {list(noisy.latents.shape)}"
            )
        p = self.patch_size
        patches = rearrange(noisy.latents, "b t (h p) (w q) c -> b t (h w) (p q c)", p=p, q=p)
        x = self.embed(patches.to(self.embed.weight.dtype))
        registers = x.new_zeros(*x.shape[:2], self.registers, x.shape[-1])
        x = torch.cat((registers, x), dim=2) + self.places.to(x.dtype)
        if self.agents is None:
            return x
        agents = self.agents.to(x.dtype).expand(*x.shape[:2], -1, -1)
        if self.tasks is not None and noisy.task is not None:
            agents = agents + self.tasks.to(x.dtype)[noisy.task][:, :, None]
        return torch.cat((x, agents), dim=2)

    def _condition(self, noisy: NoisyFrames) -> Tensor:
        """[b, t, d]: signal level, action and step size of each frame."""
        signal = _sinusoidal_embedding(noisy.signal, self.config.width).to(self.places.dtype)
        condition = self.embed_signal(signal) + noisy.action_embedding
        if self.embed_step is not None:
            if noisy.step_index is None:
                raise ValueError(f"this network has {self.num_step_sizes} step sizes: give noisy.step_index")
            condition = condition + self.embed_step(noisy.step_index)
        return nn.functional.silu(condition)

    def _predict(self, x: Tensor) -> Tensor:
        patches, p = self.head(x[:, :, self.registers : len(self.places)]), self.patch_size
        return rearrange(patches, "b t (h w) (p q c) -> b t (h p) (w q) c", h=self.grid[0] // p, p=p, q=p)

    def _features(self, x: Tensor) -> Tensor:
        return (x if self.agents is None else x[:, :, len(self.places) :]).mean(dim=2)


def _check_settings(prediction: str, width: int, agent_tokens: int, factored: bool, causal: bool) -> None:
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"prediction={prediction!r} must be one of {', '.join(PREDICTION_TYPES)}")
    if width % 2:
        raise ValueError(f"width={width} must be even")
    if agent_tokens and not (factored and causal):
        raise ValueError(f"agent_tokens={agent_tokens} need attention='factored' and causal=True")


def agent_token_mask(tokens: int, agent_tokens: int) -> Tensor:
    """bool [n, n], True where a token may attend: to all but the last ``agent_tokens``, which attend to all tokens."""
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    mask[:-agent_tokens, -agent_tokens:] = False
    return mask


def _sinusoidal_embedding(level: Tensor, width: int) -> Tensor:
    """Sines and cosines of a level between 0 and 1: [b, t] -> float [b, t, width]; periods from 100 down to 0.1."""
    frequencies = 1000 ** torch.linspace(0, 1, width // 2, device=level.device, dtype=torch.float64)
    angles = level.to(torch.float64)[..., None] * frequencies * (2 * math.pi / 100)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(level.dtype)
