"""The diffusion transformer of Oasis: attention in space and, causally, in time, in turn.

Each frame has a noise level of its own (diffusion forcing, arXiv 2407.01392).

Legend: b batch, t time, h w c of the latents, n tokens of a frame, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vwm.core.frame_window import known_causal_mask
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.oasis.layers import LAYER_NORM_EPSILON, GELUPerceptron, PatchEmbedding, merge_heads, split_heads
from vwm.models.oasis.rotary import grid_angles, grid_frequencies, rotate, time_angles, time_frequencies

LEVEL_CHANNELS = 256
"""Channels of the sines and cosines of a noise level."""
GRID_MAX_FREQUENCY = 256


class FrameKeys(NamedTuple):
    """Keys and values of past frames in one block, each [b, n, heads, t, d / heads]; keys are not rotated yet."""

    keys: Tensor
    values: Tensor


class OasisDiT(ModelMixin, ConfigMixin):
    """Predict v of the noisy latents of frames; the defaults are Oasis 500M.

    The names of the weights are the published ones.

    Args:
        grid: (h, w) of the latents, multiples of ``patch_size``.
        channels: c of the latents.
        patch_size: side of a patch of latents, which is a token.
        width: d.
        depth: number of blocks.
        heads: of the attention.
        action_dims: numbers of an action.
        window: frames that attention in time sees, the predicted one included.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        grid: tuple[int, int] = (18, 32),
        channels: int = 16,
        patch_size: int = 2,
        width: int = 1024,
        depth: int = 16,
        heads: int = 16,
        action_dims: int = 25,
        window: int = 32,
    ) -> None:
        super().__init__()
        self.grid = (int(grid[0]), int(grid[1]))
        if any(side < 1 or side % patch_size for side in self.grid):
            raise ValueError(f"grid={self.grid} must be multiples of patch_size={patch_size}")
        if width % (4 * heads):
            raise ValueError(f"width={width} must be a multiple of 4 heads={4 * heads}")
        if window < 2:
            raise ValueError(f"window={window} must be 2 or more: the predicted frame and one before it")
        self.channels = channels
        self.patch_size = patch_size
        self.window = window
        self.action_dims = action_dims
        self.x_embedder = PatchEmbedding(patch_size, channels, width)
        self.t_embedder = _LevelEmbedding(width)
        self.external_cond = nn.Linear(action_dims, width)
        self.blocks = nn.ModuleList(OasisBlock(width, heads) for _ in range(depth))
        self.final_layer = _FinalLayer(width, channels * patch_size**2)
        self.head_width = width // heads

    def forward(self, latents: Tensor, level: Tensor, actions: Tensor, known: Tensor | None = None) -> Tensor:
        """Predict v of frames, each from itself and the frames before it.

        Args:
            latents: noisy, float [b, t, h, w, c].
            level: of the noise, int64 [b, t], 0 to 999.
            actions: float [b, t, a], that led to the frames.
            known: bool [b, t], False for frames that no other attends to; None where all count.

        Returns:
            Float [b, t, h, w, c].
        """
        return self._run(latents, level, actions, known, past=None)[0]

    def encode_past(self, latents: Tensor, level: Tensor, actions: Tensor, known: Tensor) -> list[FrameKeys]:
        """Return keys and values of the frames of ``forward``, for every block."""
        return self._run(latents, level, actions, known, past=None)[1]

    def predict(self, past: list[FrameKeys], latents: Tensor, level: Tensor, actions: Tensor, known: Tensor) -> Tensor:
        """Predict v of the frames after past ones: what ``forward`` predicts for the last frames of all of them.

        Args:
            past: of s frames, see ``encode_past``.
            latents, level, actions: of the t frames after them; see ``forward``.
            known: bool [b, s + t], of all frames.

        Returns:
            Float [b, t, h, w, c].
        """
        return self._run(latents, level, actions, known, past)[0]

    def _run(
        self, latents: Tensor, level: Tensor, actions: Tensor, known: Tensor | None, past: list[FrameKeys] | None
    ) -> tuple[Tensor, list[FrameKeys]]:
        batch, frames = level.shape
        images = rearrange(latents, "b t h w c -> (b t) c h w").to(self.dtype)
        x = self.x_embedder(images).unflatten(0, (batch, frames))
        condition = self.t_embedder(level) + self.external_cond(actions.to(self.dtype))
        total = frames + (0 if past is None else past[0].keys.shape[-2])
        places, times = self._angles(total, x.device)
        mask = known_causal_mask(frames, total, known, x.device)
        keys = []
        for number, block in enumerate(self.blocks):
            x, own = block(x, condition, places, times, mask, None if past is None else past[number])
            keys.append(own)
        patches, p = self.final_layer(x, condition), self.patch_size
        return rearrange(patches, "b t (h w) (p q c) -> b t (h p) (w q) c", h=self.grid[0] // p, p=p, q=p), keys

    def _angles(self, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the angles of the places of a frame and of frames: in float32, also where the weights are bfloat16."""
        dtype, p = torch.promote_types(self.external_cond.weight.dtype, torch.float32), self.patch_size
        grid, time = (frequencies.to(dtype) for frequencies in rotary_frequencies(self.head_width, device))
        return grid_angles(grid, self.grid[0] // p, self.grid[1] // p), time_angles(time, frames)


class OasisBlock(nn.Module):
    """Attention and a perceptron in space, then in time, each modulated by the condition: [b, t, n, d].

    Args:
        width: d.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.s_norm1 = _plain_norm(width)
        self.s_attn = _AxisAttention(width)
        self.s_norm2 = _plain_norm(width)
        self.s_mlp = GELUPerceptron(width, ratio=4, approximate="tanh")
        self.s_adaLN_modulation = _modulation(width, 6)
        self.t_norm1 = _plain_norm(width)
        self.t_attn = _AxisAttention(width)
        self.t_norm2 = _plain_norm(width)
        self.t_mlp = GELUPerceptron(width, ratio=4, approximate="tanh")
        self.t_adaLN_modulation = _modulation(width, 6)

    def forward(
        self, x: Tensor, condition: Tensor, places: Tensor, times: Tensor, mask: Tensor, past: FrameKeys | None
    ) -> tuple[Tensor, FrameKeys]:
        """Process frames.

        Args:
            x: [b, t, n, d].
            condition: [b, t, d].
            places, times: angles of the tokens of a frame [n, r] and of all frames, the past ones too, [s + t, r].
            mask: see ``known_causal_mask``.
            past: keys and values of s frames before them; None for s = 0.

        Returns:
            [b, t, n, d], and the keys and values of these frames.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _six_parts(self.s_adaLN_modulation(condition))
        x = x + gate * self._attend_in_space(_modulate(self.s_norm1(x), shift, scale), places)
        x = x + mlp_gate * self.s_mlp(_modulate(self.s_norm2(x), mlp_shift, mlp_scale))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _six_parts(self.t_adaLN_modulation(condition))
        attended, keys = self._attend_in_time(_modulate(self.t_norm1(x), shift, scale), times, mask, past)
        x = x + gate * attended
        return x + mlp_gate * self.t_mlp(_modulate(self.t_norm2(x), mlp_shift, mlp_scale)), keys

    def _attend_in_space(self, x: Tensor, places: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.s_attn.to_qkv(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(rotate(q, places), rotate(k, places), v)
        return self.s_attn.to_out(merge_heads(attended))

    def _attend_in_time(
        self, x: Tensor, times: Tensor, mask: Tensor, past: FrameKeys | None
    ) -> tuple[Tensor, FrameKeys]:
        frames = x.shape[1]
        by_token = self.t_attn.to_qkv(x).transpose(1, 2)
        q, k, v = (split_heads(part, self.heads) for part in by_token.chunk(3, dim=-1))
        own = FrameKeys(k, v)
        if past is not None:
            k, v = torch.cat((past.keys, k), dim=-2), torch.cat((past.values, v), dim=-2)
        attended = F.scaled_dot_product_attention(rotate(q, times[-frames:]), rotate(k, times), v, attn_mask=mask)
        return self.t_attn.to_out(merge_heads(attended).transpose(1, 2)), own


class _AxisAttention(nn.Module):
    """The weights of attention along one axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)


class _LevelEmbedding(nn.Module):
    """Embed noise levels: int64 [b, t] -> [b, t, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(LEVEL_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        half = LEVEL_CHANNELS // 2
        steps = torch.arange(half, device=level.device, dtype=torch.float32)
        angles = level[..., None].float() * torch.exp(-math.log(10_000) * steps / half)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(next(self.mlp.parameters()).dtype))


class _FinalLayer(nn.Module):
    """Tokens [b, t, n, d] to patches."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = _plain_norm(width)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, :, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def rotary_frequencies(head_width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the frequencies of an axis of the grid [c / 4] and of time [c / 2], for heads of c channels."""
    grid = grid_frequencies(head_width // 2, GRID_MAX_FREQUENCY, device)
    return grid, time_frequencies(head_width, device)


def _plain_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=LAYER_NORM_EPSILON)


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _six_parts(modulation: Tensor) -> tuple[Tensor, ...]:
    """[b, t, 6 d] -> six of [b, t, 1, d]."""
    return modulation[:, :, None].chunk(6, dim=-1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
