"""Multi-head attention with normalized queries and keys and rotary position embeddings.

Legend: b batch, t time, n tokens, d width, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.nn.attention_kernels import KeyValueCache, dot_product_attention
from vwm.nn.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    TensorGroup,
    divide_gradients,
    divide_heads,
)


class RotaryEmbedding(NamedTuple):
    """Cosine and sine of the angles by which channel pairs are rotated: broadcastable to [..., tokens, c/2]."""

    cos: Tensor
    sin: Tensor


def rotary_angles(positions: Tensor, pairs: int, base: float) -> Tensor:
    """[...] -> float64 [..., pairs], the angles of rotary positions (RoFormer, arXiv 2104.09864, eq. 15).

    In float64, so that rotations remain exact after a million frames.
    """
    frequencies = base ** (-torch.arange(pairs, device=positions.device, dtype=torch.float64) / pairs)
    return positions.to(torch.float64)[..., None] * frequencies


def rotary_embedding(angles: Tensor, dtype: torch.dtype) -> RotaryEmbedding:
    """Cosines and sines of angles."""
    return RotaryEmbedding(angles.cos().to(dtype), angles.sin().to(dtype))


def apply_rotary(x: Tensor, rotation: RotaryEmbedding) -> Tensor:
    """Rotate channel pairs (i, i + c/2) of [..., tokens, c]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def frame_rotary_embedding(positions: Tensor, pairs: int, dtype: torch.dtype) -> RotaryEmbedding:
    """Rotary embedding of frames, for [b, n, h, t, 2 * pairs]; positions: int64 [t] or [b, t]."""
    angles = rotary_angles(positions, pairs, 1000.0)
    if angles.ndim == 3:  # one position per batch entry: broadcast over tokens and heads
        angles = angles[:, None, None]
    return rotary_embedding(angles, dtype)


# These are views by torch alone: einops takes as long as the product of small matrices.
def heads_of_frames(x: Tensor, heads: int) -> Tensor:
    """[b, t, n, h c] -> [b t, h, n, c], for attention within frames."""
    b, t, n, width = x.shape
    return x.reshape(b * t, n, heads, width // heads).transpose(1, 2)


def join_heads_of_frames(x: Tensor, batch: int) -> Tensor:
    """[b t, h, n, c] -> [b, t, n, h c]."""
    frames, heads, n, channels = x.shape
    return x.transpose(1, 2).reshape(batch, frames // batch, n, heads * channels)


def heads_of_places(x: Tensor, heads: int) -> Tensor:
    """[b, t, n, h c] -> [b, n, h, t, c], for attention between frames."""
    b, t, n, width = x.shape
    return x.reshape(b, t, n, heads, width // heads).permute(0, 2, 3, 1, 4)


def join_heads_of_places(x: Tensor) -> Tensor:
    """[b, n, h, t, c] -> [b, t, n, h c]."""
    return x.permute(0, 3, 1, 2, 4).flatten(3)


class SpaceTimeAttention(nn.Module):
    """Self-attention along space (``attend_space``) or time (``attend_time``).

    Queries and keys are normalized per head (ViT-22B, arXiv 2302.05442), which keeps logits bounded in bf16.

    Args:
        width: d.
        heads: h; must divide the width into an even head size.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_positive(width=width, heads=heads)
        if width % heads or (width // heads) % 2:
            raise ValueError(f"heads={heads} must divide width={width} into heads of an even size")
        self.heads = heads
        self.qkv: nn.Linear | ColumnParallelLinear = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.LayerNorm(width // heads, bias=False)
        self.key_norm = nn.LayerNorm(width // heads, bias=False)
        self.out: nn.Linear | RowParallelLinear = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def divide_weights(self, group: TensorGroup) -> None:
        """Keep this process's share of the heads. Raises ValueError where they do not divide evenly."""
        (heads,) = divide_heads(group, heads=self.heads)
        width = self.qkv.weight.shape[1]
        self.qkv = ColumnParallelLinear(self.qkv, group, (width, width, width))
        self.out = RowParallelLinear(self.out, group)
        for norm in (self.query_norm, self.key_norm):
            divide_gradients(norm, group)
        self.heads = heads

    def attend_space(self, x: Tensor) -> Tensor:
        """Every token attends to all tokens of its own frame. [b, t, n, d] -> [b, t, n, d]."""
        q, k, v = (heads_of_frames(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        y = dot_product_attention(self.query_norm(q).to(v), self.key_norm(k).to(v), v)
        return self.out(join_heads_of_frames(y, x.shape[0]))

    def attend_time(
        self,
        x: Tensor,
        rotation: RotaryEmbedding,
        mask: Tensor,
        past: KeyValueCache | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, KeyValueCache]:
        """Every token attends to the tokens at its own spatial position in other frames.

        Args:
            x: [b, t, n, d].
            rotation: of the frames of ``x``; see ``frame_rotary_embedding``.
            mask: bool, broadcastable to [b, n, h, t, slots + t]; True where a query may attend.
            past: keys and values of the frames before ``x``.
            is_causal: see ``dot_product_attention``.

        Returns:
            [b, t, n, d], and the keys and values of these frames: [b, n, h, t, c].
        """
        q, k, v = (heads_of_places(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        q = apply_rotary(self.query_norm(q).to(v), rotation)
        k = apply_rotary(self.key_norm(k).to(v), rotation)
        y = dot_product_attention(q, k, v, mask, past=past, is_causal=is_causal)
        return self.out(join_heads_of_places(y)), KeyValueCache(k, v)
