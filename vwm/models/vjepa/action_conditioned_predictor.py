"""The action-conditioned predictor of V-JEPA 2-AC (arXiv 2506.09985, section 3): a world in representation space.

A frame is n tokens of an encoder, beside them a token of the action taken there and, where the body's own state is
known, one of that state. Attention is causal by frames: all tokens of a frame see each other and the frames before.
From the frame's tokens the next frame's are read. A single token a frame, with the action modulating every layer, is
the layout of LeWorldModel (arXiv 2603.19312).

Legend: b batch, t time, n tokens a frame, D width of the latents, d width of the network, s dimensions of the state.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.nn.actions import ActionEmbedding
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class ActionConditionedPredictor(ModelMixin, ConfigMixin):
    """From encoded frames and the actions taken in them to the frames that follow.

    Args:
        grid: (h, w) of a frame's tokens; (1, 1) where a frame is one vector.
        latent_width: D.
        num_actions: number of discrete actions; or the sizes of several discrete parts.
        action_dims: dimensions of continuous actions.
        proprioception_dims: s, of the state of the body (proprioception) that comes with every frame; 0 for none.
        unknown_actions: whether a vector is learned for actions that are not known, or are hidden.
        action_as: ``"token"``, one more token a frame (V-JEPA 2-AC), or ``"modulation"``, a vector that shifts, scales
            and gates every layer (LeWorldModel): half the tokens where a frame is one.
        residual: whether the network says the change from the frame to the next, rather than the next frame.
        layer_norm: whether predictions are brought to zero mean and unit variance a token, as the latents are that
            they stand for (V-JEPA 2-AC).
        width: d.
        depth: layers, each one attention and one feed-forward.
        heads: attention heads.
        window: frames that attention spans, the present one included; 1 where a frame says all about the world.
        kv_heads, attention, time_every, mlp: see ``VideoTransformer``.

    Raises:
        ValueError: no kind of action.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (1, 1),
        latent_width: int = 192,
        num_actions: int | list[int] = 0,
        action_dims: int = 0,
        proprioception_dims: int = 0,
        unknown_actions: bool = False,
        action_as: Literal["token", "modulation"] = "token",
        residual: bool = False,
        layer_norm: bool = False,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        window: int = 8,
        kv_heads: int | None = None,
        attention: Literal["full", "factored"] = "full",
        time_every: int = 2,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
    ) -> None:
        super().__init__()
        choices = list(num_actions) if isinstance(num_actions, list) else [num_actions] if num_actions else []
        if not choices and not action_dims:
            raise ValueError("an action-conditioned predictor needs actions: set dynamics.num_actions or action_dims")
        self.grid, self.tokens, self.latent_width = (
            (int(grid[0]), int(grid[1])),
            int(grid[0]) * int(grid[1]),
            latent_width,
        )
        self.proprioception_dims, self.residual, self.layer_norm = proprioception_dims, residual, layer_norm
        modulated = action_as == "modulation"
        self.extra = (not modulated) + bool(proprioception_dims)
        self.embed = nn.Linear(latent_width, width)
        self.places = nn.Parameter(torch.randn(self.extra + self.tokens, width) * 0.02)
        self.register_buffer("coordinates", grid_coordinates(*self.grid, self.extra), persistent=False)
        self.embed_action = ActionEmbedding(choices, action_dims, width)
        self.no_action = nn.Parameter(torch.zeros(width)) if unknown_actions else None
        self.embed_state = nn.Linear(proprioception_dims, width) if proprioception_dims else None
        self.unknown_proprioception_embedding = nn.Parameter(torch.zeros(width)) if proprioception_dims else None
        self.transformer = VideoTransformer(
            width, depth, heads, window, kv_heads, attention, time_every, mlp=mlp, conditioned=modulated
        )
        self.head = nn.Linear(width, latent_width)
        if residual:  # at first nothing changes
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self,
        latents: Tensor,
        actions: Tensor | None,
        states: Tensor | None = None,
        known: Tensor | None = None,
        felt: Tensor | None = None,
    ) -> Tensor:
        """What follows each frame of clips.

        Args:
            latents: [b, t, n, D], of frames 0..t-1.
            actions: [b, t] or [b, t, a], ``actions[:, i]`` is taken in frame i and leads to frame i+1; None where none
                is known, which takes ``unknown_actions``.
            states: float [b, t, s], of the body in each frame; None where it is not known.
            known: bool, broadcastable to [b, t]: False where the action is not known, or is to be hidden.
            felt: likewise of the states.

        Returns:
            [b, t, n, D], the predictions of frames 1..t, each from the frames and actions before it alone.

        Raises:
            ValueError: something of another shape or kind.
        """
        x, condition = self._tokens(latents, actions, states, known, felt)
        return self._predict(self.transformer(x, self.coordinates, condition), latents)

    def init_state(self, batch: int) -> TransformerState:
        """The state of worlds in which no frame has been seen."""
        return self.transformer.init_state(batch, len(self.places))

    def step(
        self,
        state: TransformerState,
        latents: Tensor,
        actions: Tensor | None,
        states: Tensor | None = None,
        known: Tensor | None = None,
        felt: Tensor | None = None,
    ) -> tuple[TransformerState, Tensor]:
        """``forward`` for the next frame or frames of each world; the given state is left as it was."""
        x, condition = self._tokens(latents, actions, states, known, felt)
        x, state = self.transformer.step(x, state, self.coordinates, condition)
        return state, self._predict(x, latents)

    def _tokens(
        self,
        latents: Tensor,
        actions: Tensor | None,
        states: Tensor | None,
        known: Tensor | None,
        felt: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens of frames [b, t, extra + n, d], and the vectors [b, t, d] that modulate the layers, if any."""
        if latents.ndim != 4 or tuple(latents.shape[2:]) != (self.tokens, self.latent_width):
            raise ValueError(f"latents must be [b, t, {self.tokens}, {self.latent_width}], got {list(latents.shape)}")
        x = self.embed(latents.to(self.embed.weight.dtype))
        lead = self._lead(actions, known, x)
        more = [] if self.transformer.modulation is not None else [lead]
        if self.embed_state is not None:
            more.append(self._proprioception_tokens(states, felt, x))
        x = torch.cat((*(token[:, :, None] for token in more), x), dim=2) + self.places.to(x.dtype)
        return x, None if self.transformer.modulation is None else F.silu(lead)

    def _lead(self, actions: Tensor | None, known: Tensor | None, x: Tensor) -> Tensor:
        lead = None if actions is None else self.embed_action(actions)
        if lead is not None and lead.shape[:2] != x.shape[:2]:
            raise ValueError(f"actions of {list(lead.shape[:2])} clips and frames, latents of {list(x.shape[:2])}")
        if lead is not None and known is None:
            return lead
        if self.no_action is None:
            raise ValueError("this predictor must be told every action: set dynamics.unknown_actions to true")
        if lead is None or known is None:
            return self.no_action.to(x.dtype).expand(*x.shape[:2], -1)
        return torch.where(known[..., None], lead, self.no_action)

    def _proprioception_tokens(self, states: Tensor | None, felt: Tensor | None, x: Tensor) -> Tensor:
        assert self.embed_state is not None and self.unknown_proprioception_embedding is not None
        nothing = self.unknown_proprioception_embedding.to(x.dtype).expand(*x.shape[:2], -1)
        if states is None:
            return nothing
        if tuple(states.shape) != (*x.shape[:2], self.proprioception_dims):
            raise ValueError(f"states must be {[*x.shape[:2], self.proprioception_dims]}, got {list(states.shape)}")
        token = self.embed_state(states.to(x.dtype))
        return token if felt is None else torch.where(felt[..., None], token, nothing)

    def _predict(self, x: Tensor, latents: Tensor) -> Tensor:
        said = self.head(x[:, :, self.extra :])
        if self.residual:
            said = latents.to(said.dtype) + said
        return F.layer_norm(said, said.shape[-1:]) if self.layer_norm else said
