"""Multi-head attention with normalized queries and keys and rotary position embeddings.

Legend: b batch, t time, n tokens, d width, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class KeyValueCache(NamedTuple):
    """Rotated keys, and values, of past frames in temporal attention: [b, n, g, slots, c] with g key heads.

    The newest frame is the last. Slots that are not filled yet hold zeros and are masked.
    """

    keys: Tensor
    values: Tensor


class MovedQueries(NamedTuple):
    """Queries as seen by some of the keys, with another rotary position than for the others.

    Attributes:
        queries: [..., h, t, c].
        mask: bool, broadcastable to [..., h, t, s], True for the pairs of query and key to which they apply.
    """

    queries: Tensor
    mask: Tensor


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


def dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    moved: MovedQueries | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(c)) v: q [..., h, t, c], k and v [..., g, s, c] -> [..., h, t, c].

    With fewer key heads than query heads, groups of h / g consecutive query heads share one (GQA, arXiv 2305.13245).
    ``soft_cap`` bounds the logits by ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118, section 2).

    Accelerators use the fused kernel. CPUs use the formula, because for short sequences torch's fused CPU kernel takes
    7 times as long in bf16, forward and backward (64 tokens, heads of 32: 25 ms instead of 3.6 ms). A soft cap and
    ``moved`` queries also use the formula, because the fused kernel does not support them.
    """
    if q.device.type != "cpu" and soft_cap is None and moved is None:
        return fused_attention(q, k, v, mask)
    logits = _attention_logits(q, k)
    if moved is not None:
        logits = torch.where(moved.mask, _attention_logits(moved.queries, k), logits)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    groups, share = v.shape[-3], q.shape[-3] // v.shape[-3]
    return _split_query_groups(_merge_query_groups(logits.softmax(-1).to(v), groups) @ v, share)


def _attention_logits(q: Tensor, k: Tensor) -> Tensor:
    """q k^T / sqrt(c): [..., h, t, c] and [..., g, s, c] -> [..., h, t, s]."""
    # Query heads that share a key head become one longer query, so that keys and values need not be repeated.
    groups, share = k.shape[-3], q.shape[-3] // k.shape[-3]
    return _split_query_groups(_merge_query_groups(q * q.shape[-1] ** -0.5, groups) @ k.transpose(-1, -2), share)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``dot_product_attention`` by torch's kernels, which are fast only with a single batch dimension."""
    batch_shape = q.shape[:-3]
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*batch_shape, *mask.shape[-3:]).flatten(0, -4)
    q, k, v = (x.flatten(0, -4) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).unflatten(
        0, batch_shape
    )


def _merge_query_groups(x: Tensor, groups: int) -> Tensor:
    """[..., h, t, c] -> [..., g, (h/g) t, c]."""
    return x if groups == x.shape[-3] else x.unflatten(-3, (groups, -1)).flatten(-3, -2)


def _split_query_groups(x: Tensor, share: int) -> Tensor:
    """[..., g, (h/g) t, c] -> [..., h, t, c]."""
    return x if share == 1 else x.unflatten(-2, (share, -1)).flatten(-4, -3)


class SpaceTimeAttention(nn.Module):
    """Self-attention along space (``attend_space``) or time (``attend_time``).

    Queries and keys are normalized per head (ViT-22B, arXiv 2302.05442), which keeps logits bounded in bf16.

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

    def attend_space(self, x: Tensor) -> Tensor:
        """Every token attends to all tokens of its own frame. [b, t, n, d] -> [b, t, n, d]."""
        b = x.shape[0]
        q, k, v = rearrange(self.qkv(x), "b t n (three h c) -> three (b t) h n c", three=3, h=self.heads)
        y = dot_product_attention(self.query_norm(q).to(v), self.key_norm(k).to(v), v)
        return self.out(rearrange(y, "(b t) h n c -> b t n (h c)", b=b))

    def attend_time(
        self, x: Tensor, rotation: RotaryEmbedding, mask: Tensor, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """Every token attends to the tokens at its own spatial position in other frames.

        Args:
            x: [b, t, n, d].
            rotation: of the frames of ``x``; see ``frame_rotary_embedding``.
            mask: bool, broadcastable to [b, n, h, t, slots + t]; True where a query may attend.
            past: keys and values of the frames before ``x``.

        Returns:
            [b, t, n, d], and the keys and values of the past frames and of these: [b, n, h, slots + t, c].
        """
        q, k, v = rearrange(self.qkv(x), "b t n (three h c) -> three b n h t c", three=3, h=self.heads)
        q = apply_rotary(self.query_norm(q).to(v), rotation)
        k = apply_rotary(self.key_norm(k).to(v), rotation)
        if past is not None:
            k = torch.cat((past.keys.to(k), k), dim=3)
            v = torch.cat((past.values.to(v), v), dim=3)
        y = dot_product_attention(q, k, v, mask)
        return self.out(rearrange(y, "b n h t c -> b t n (h c)")), KeyValueCache(k, v)
