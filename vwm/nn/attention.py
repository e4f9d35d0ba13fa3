"""Multi-head attention with normalised queries and keys, and rotary positions where they are given.

Legend: b batch, t time, n tokens, d width, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class KeyValueCache(NamedTuple):
    """What time attention remembers of the past frames: keys (rotated) and values, [b, n, g, slots, c] of g key heads.

    The newest frame stands last; slots that no frame has filled yet hold zeros and are masked.
    """

    keys: Tensor
    values: Tensor


class RotaryEmbedding(NamedTuple):
    """cos and sin of the angles by which channel pairs turn: broadcastable to [..., tokens, c/2]."""

    cos: Tensor
    sin: Tensor


def rotary_angles(positions: Tensor, pairs: int, base: float) -> Tensor:
    """[...] -> float64 [..., pairs], the angles of rotary positions (RoFormer, arXiv 2104.09864, eq. 15).

    In float64, so that a world that has been played for a million frames turns its keys as exactly as a new one.
    """
    frequencies = base ** (-torch.arange(pairs, device=positions.device, dtype=torch.float64) / pairs)
    return positions.to(torch.float64)[..., None] * frequencies


def rotary_embedding(of: Tensor, dtype: torch.dtype) -> RotaryEmbedding:
    """Cosines and sines of angles."""
    return RotaryEmbedding(of.cos().to(dtype), of.sin().to(dtype))


def apply_rotary(x: Tensor, by: RotaryEmbedding) -> Tensor:
    """Turn channel pairs (halves layout): [..., tokens, c]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = by.cos.to(x.dtype), by.sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def apply_rotary_at(x: Tensor, positions: Tensor, base: float = 1000.0) -> Tensor:
    """Turn [b, n, h, t, c] by positions int64 [t] or [b, t]."""
    by = rotary_angles(positions, x.shape[-1] // 2, base)
    if by.ndim == 3:  # a position a world: broadcast over tokens and heads
        by = by[:, None, None]
    return apply_rotary(x, rotary_embedding(by, x.dtype))


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, soft_cap: float | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(c)) v: q [..., h, t, c], k and v [..., g, s, c] -> [..., h, t, c].

    With fewer key heads than query heads, h / g query heads in a row share each (GQA, arXiv 2305.13245). ``soft_cap``
    bounds the logits by ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118, section 2).

    An accelerator gets the fused kernel. A CPU gets the formula itself: at these short sequences torch's fused CPU
    kernel takes 7 times as long in bf16, forward and backward (64 tokens, heads of 32: 25 ms against 3.6 ms). So does
    a soft cap, which the fused kernel does not know.
    """
    if q.device.type != "cpu" and soft_cap is None:
        return fused_attention(q, k, v, mask)
    # Query heads that share a key head become one longer query, so that keys and values need not be repeated.
    groups, share = k.shape[-3], q.shape[-3] // k.shape[-3]
    logits = _split_query_groups(_merge_query_groups(q * q.shape[-1] ** -0.5, groups) @ k.transpose(-1, -2), share)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return _split_query_groups(_merge_query_groups(logits.softmax(-1).to(v), groups) @ v, share)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``dot_product_attention`` by torch's kernels, which want one batch dimension and are slow with more."""
    lead = q.shape[:-3]
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*lead, *mask.shape[-3:]).flatten(0, -4)
    q, k, v = (x.flatten(0, -4) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).unflatten(
        0, lead
    )


def _merge_query_groups(x: Tensor, groups: int) -> Tensor:
    """[..., h, t, c] -> [..., g, (h/g) t, c]."""
    return x if groups == x.shape[-3] else x.unflatten(-3, (groups, -1)).flatten(-3, -2)


def _split_query_groups(x: Tensor, share: int) -> Tensor:
    """[..., g, (h/g) t, c] -> [..., h, t, c]."""
    return x if share == 1 else x.unflatten(-2, (share, -1)).flatten(-4, -3)


class SpaceTimeAttention(nn.Module):
    """Self-attention; the caller says along which axis by the shape it passes.

    Queries and keys are normalised a head (ViT-22B, arXiv 2302.05442), which keeps logits bounded in bf16.

    Args:
        width: d.
        heads: h; must divide the width into an even head size.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"heads={heads} must divide width={width} into heads of an even size")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.LayerNorm(width // heads, bias=False)
        self.key_norm = nn.LayerNorm(width // heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def space(self, x: Tensor) -> Tensor:
        """Every token attends to all tokens of its own frame. [b, t, n, d] -> [b, t, n, d]."""
        b = x.shape[0]
        q, k, v = rearrange(self.qkv(x), "b t n (three h c) -> three (b t) h n c", three=3, h=self.heads)
        y = dot_product_attention(self.query_norm(q).to(v), self.key_norm(k).to(v), v)
        return self.out(rearrange(y, "(b t) h n c -> b t n (h c)", b=b))

    def time(
        self, x: Tensor, positions: Tensor, mask: Tensor, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """Every token attends along time to the tokens at its own place.

        Args:
            x: [b, t, n, d].
            positions: int64 [t] or [b, t], the frames' numbers.
            mask: bool, broadcastable to [b, n, h, t, slots + t]; True where a query may look.
            past: the frames before ``x``.

        Returns:
            [b, t, n, d], and the keys and values of the past frames and of these: [b, n, h, slots + t, c].
        """
        q, k, v = rearrange(self.qkv(x), "b t n (three h c) -> three b n h t c", three=3, h=self.heads)
        q = apply_rotary_at(self.query_norm(q).to(v), positions)
        k = apply_rotary_at(self.key_norm(k).to(v), positions)
        if past is not None:
            k = torch.cat((past.keys.to(k), k), dim=3)
            v = torch.cat((past.values.to(v), v), dim=3)
        y = dot_product_attention(q, k, v, mask)
        return self.out(rearrange(y, "b n h t c -> b t n (h c)")), KeyValueCache(k, v)
