"""The action-conditioned predictor of V-JEPA 2-AC (arXiv 2506.09985, section 3): dynamics in representation space.

The tokens of a frame are n latents of an encoder, a token for the action taken at the frame and, optionally, a token
for proprioception. Attention is causal by frames: each token attends to all tokens of its frame and of earlier frames.
The outputs at the latents of a frame predict the next frame. One token per frame, with the action modulating every
layer, is the layout of LeWorldModel (arXiv 2603.19312).

Legend: b batch, t time, n tokens per frame, D width of the latents, d width of the network, s size of proprioception.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.vjepa.end_effector import POSE_SIZE, move_end_effector
from vwm.models.vjepa.frame_causal_vit import FrameCausalViT
from vwm.models.vjepa.vit_block import init_vit_weights
from vwm.nn.actions import make_action_embedding
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class ActionConditionedPredictor(ModelMixin, ConfigMixin):
    """Predict the next latents from the latents of frames and the actions taken at them.

    Args:
        grid: (h, w) of the tokens of a frame; (1, 1) if a frame is one vector.
        latent_width: D.
        num_actions, action_dims, action_parts: discrete, continuous or composite actions; see
            ``vwm.nn.actions.make_action_embedding``.
        proprioception_dims: s, size of the proprioceptive state of each frame; 0 for none.
        proprioception_update: how a simulation knows the proprioception of the frames that it predicts: ``"none"``, it
            does not; or ``"end_effector"``, actions move a pose, see ``move_end_effector`` (V-JEPA 2-AC).
        allow_unknown_actions: learn an embedding for unknown or hidden actions.
        action_conditioning: ``"token"``, an additional token per frame (V-JEPA 2-AC), or ``"modulation"``, adaLN of
            every layer (LeWorldModel), which halves the number of tokens if a frame is one token.
        residual: predict the difference between the next frame and the frame.
        normalize_output: apply layer norm to the predictions, if the latents are layer-normed (V-JEPA 2-AC).
        width: d.
        depth: number of layers, each with one attention and one feed-forward.
        heads: number of attention heads.
        window: number of frames that attention spans, including the current one; 1 for fully observed environments.
        kv_heads, attention, time_every, mlp: see ``VideoTransformer``.
        layers: ``"video"``, a ``VideoTransformer`` and a learned embedding of each token's place in the frame; or
            ``"vit"``, as in the published V-JEPA 2-AC, for its weights: a ``FrameCausalViT`` without that embedding,
            and a linear embedding of continuous actions.
        tiled_rope: for ``"vit"``, see ``PositionEncoding.tiled``.

    Raises:
        ValueError: none of ``num_actions``, ``action_dims`` and ``action_parts`` is set; or ``layers`` or
            ``proprioception_update`` do not suit another setting.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (1, 1),
        latent_width: int = 192,
        num_actions: int = 0,
        action_dims: int = 0,
        action_parts: list[dict[str, Any]] | None = None,
        proprioception_dims: int = 0,
        allow_unknown_actions: bool = False,
        action_conditioning: Literal["token", "modulation"] = "token",
        residual: bool = False,
        normalize_output: bool = False,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        window: int = 8,
        kv_heads: int | None = None,
        attention: Literal["full", "factored"] = "full",
        time_every: int = 2,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        layers: Literal["video", "vit"] = "video",
        tiled_rope: bool = False,
        proprioception_update: Literal["none", "end_effector"] = "none",
    ) -> None:
        super().__init__()
        self.grid = (int(grid[0]), int(grid[1]))
        self.tokens = int(grid[0]) * int(grid[1])
        self.latent_width = latent_width
        self.proprioception_dims = proprioception_dims
        self.moves_end_effector = proprioception_update == "end_effector"
        if self.moves_end_effector and (proprioception_dims, action_dims) != (POSE_SIZE, POSE_SIZE):
            raise ValueError(
                f"dynamics.proprioception_update=end_effector needs poses and actions of {POSE_SIZE} numbers: set "
                f"proprioception_dims={proprioception_dims} and action_dims={action_dims} to {POSE_SIZE}"
            )
        self.residual = residual
        self.normalize_output = normalize_output
        modulated = action_conditioning == "modulation"
        is_vit = layers == "vit"
        self.num_condition_tokens = (not modulated) + bool(proprioception_dims)
        self.embed = nn.Linear(latent_width, width)
        places = torch.empty(self.num_condition_tokens + self.tokens, width).normal_(std=0.02)
        self.places = None if is_vit else nn.Parameter(places)
        self.register_buffer("coordinates", grid_coordinates(*self.grid, self.num_condition_tokens), persistent=False)
        embedding = make_action_embedding(width, num_actions, action_dims, action_parts, linear=is_vit)
        if embedding is None:
            raise ValueError(
                "an action-conditioned predictor needs actions: set dynamics.num_actions, action_dims or action_parts"
            )
        self.embed_action = embedding
        self.no_action = nn.Parameter(torch.zeros(width)) if allow_unknown_actions else None
        self.embed_state = nn.Linear(proprioception_dims, width) if proprioception_dims else None
        self.unknown_proprioception_embedding = nn.Parameter(torch.zeros(width)) if proprioception_dims else None
        self.transformer: VideoTransformer | FrameCausalViT
        if is_vit:
            _check_vit_settings(action_conditioning, kv_heads, attention)
            self.transformer = FrameCausalViT(
                width=width, depth=depth, heads=heads, window=window, mlp=mlp, tiled_rope=tiled_rope
            )
        else:
            self.transformer = VideoTransformer(
                width=width,
                depth=depth,
                heads=heads,
                window=window,
                kv_heads=kv_heads,
                attention=attention,
                time_every=time_every,
                mlp=mlp,
                conditioned=modulated,
            )
        self.head = nn.Linear(width, latent_width)
        if is_vit:
            init_vit_weights(self, self.transformer.blocks)
        if residual:  # the initial prediction is no change
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self,
        latents: Tensor,
        actions: Tensor | None,
        proprioception: Tensor | None = None,
        known: Tensor | None = None,
        proprioception_known: Tensor | None = None,
    ) -> Tensor:
        """Predict the frame after each frame of clips.

        Args:
            latents: [b, t, n, D], of frames 0..t-1.
            actions: [b, t] or [b, t, a], ``actions[:, i]`` leads from frame i to i+1; None if all are unknown, which
                needs ``allow_unknown_actions``.
            proprioception: float [b, t, s], of each frame; None if unknown.
            known: bool, broadcastable to [b, t]: False where the action is unknown or hidden.
            proprioception_known: the same for ``proprioception``.

        Returns:
            [b, t, n, D], predictions of frames 1..t, each from earlier frames and actions only.

        Raises:
            ValueError: a tensor has a wrong shape or dtype, or unknown actions are not allowed.
        """
        x, condition = self._tokens(latents, actions, proprioception, known, proprioception_known)
        return self._predict(self.transformer(x, self.coordinates, condition), latents)

    def init_state(self, batch: int) -> TransformerState:
        """Return the state before the first frame."""
        return self.transformer.init_state(batch, self.num_condition_tokens + self.tokens)

    def step(
        self,
        state: TransformerState,
        latents: Tensor,
        actions: Tensor | None,
        proprioception: Tensor | None = None,
        known: Tensor | None = None,
        proprioception_known: Tensor | None = None,
    ) -> tuple[TransformerState, Tensor]:
        """Predict as in ``forward``, in streaming mode. The given state is not modified."""
        x, condition = self._tokens(latents, actions, proprioception, known, proprioception_known)
        x, state = self.transformer.step(x, state, self.coordinates, condition)
        return state, self._predict(x, latents)

    def next_proprioception(self, proprioception: Tensor, actions: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proprioception after a step, and whether it is known: see ``proprioception_update``.

        Args:
            proprioception: float [b, s].
            actions: [b] or [b, a].
            known: bool [b].
        """
        if self.moves_end_effector:
            return move_end_effector(proprioception, actions), known
        return proprioception, torch.zeros_like(known)

    def _tokens(
        self,
        latents: Tensor,
        actions: Tensor | None,
        proprioception: Tensor | None,
        known: Tensor | None,
        proprioception_known: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens of frames [b, t, num_condition_tokens + n, d], and the condition [b, t, d] of adaLN or None."""
        if latents.ndim != 4 or tuple(latents.shape[2:]) != (self.tokens, self.latent_width):
            raise ValueError(f"latents must be [b, t, {self.tokens}, {self.latent_width}], got {list(latents.shape)}")
        x = self.embed(latents.to(self.embed.weight.dtype))
        action_embedding = self._action_embedding(actions, known, x)
        condition_tokens = [] if self.transformer.modulation is not None else [action_embedding]
        if self.embed_state is not None:
            condition_tokens.append(self._proprioception_embedding(proprioception, proprioception_known, x))
        x = torch.cat((*(token[:, :, None] for token in condition_tokens), x), dim=2)
        x = x if self.places is None else x + self.places.to(x.dtype)
        return x, None if self.transformer.modulation is None else F.silu(action_embedding)

    def _action_embedding(self, actions: Tensor | None, known: Tensor | None, x: Tensor) -> Tensor:
        if actions is not None and actions.shape[:2] != x.shape[:2]:
            raise ValueError(f"actions are [b, t] = {list(actions.shape[:2])}, but latents are {list(x.shape[:2])}")
        if actions is not None and known is None:
            embedding: Tensor = self.embed_action(actions)
            return embedding
        if self.no_action is None:
            raise ValueError(
                "this predictor needs all actions: give them, or set dynamics.allow_unknown_actions to true"
            )
        if actions is None or known is None:
            return self.no_action.to(x.dtype).expand(*x.shape[:2], -1)
        return self.embed_action.embed(actions, known, self.no_action)

    def _proprioception_embedding(self, proprioception: Tensor | None, known: Tensor | None, x: Tensor) -> Tensor:
        assert self.embed_state is not None and self.unknown_proprioception_embedding is not None
        unknown = self.unknown_proprioception_embedding.to(x.dtype).expand(*x.shape[:2], -1)
        if proprioception is None:
            return unknown
        expected = [*x.shape[:2], self.proprioception_dims]
        if list(proprioception.shape) != expected:
            raise ValueError(f"proprioception must be {expected}, got {list(proprioception.shape)}")
        embedding = self.embed_state(proprioception.to(x.dtype))
        return embedding if known is None else torch.where(known[..., None], embedding, unknown)

    def _predict(self, x: Tensor, latents: Tensor) -> Tensor:
        prediction = self.head(x[:, :, self.num_condition_tokens :])
        if self.residual:
            prediction = latents.to(prediction.dtype) + prediction
        return F.layer_norm(prediction, prediction.shape[-1:]) if self.normalize_output else prediction


def _check_vit_settings(action_conditioning: str, kv_heads: int | None, attention: str) -> None:
    """Raise ValueError for a setting that a ``FrameCausalViT`` does not have."""
    for name, value, supported in (
        ("action_conditioning", action_conditioning, "token"),
        ("kv_heads", kv_heads, None),
        ("attention", attention, "full"),
    ):
        if value != supported:
            raise ValueError(f"dynamics.{name}={value!r}: with dynamics.layers=vit it must be {supported!r}")
