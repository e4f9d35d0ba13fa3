"""Multi-head attention with normalised queries and keys, and rotary positions where they are given.

Legend: b batch, t time, n tokens, d width, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """What time attention remembers of the past frames: keys (rotated) and values, [b, n, h, slots, c].

    The newest frame stands last; slots that no frame has filled yet hold zeros and are masked.
    """

    keys: Tensor
    values: Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 1000.0) -> Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), halves layout.

    Args:
        x: [b, n, h, t, c], c even.
        positions: int64 [t] or [b, t]. Angles are computed in float64, so that a world that has been played for
            a million frames turns its keys as exactly as a new one.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions.to(torch.float64)[..., None] * frequencies
    if angles.ndim == 3:  # a position a world: broadcast over tokens and heads
        angles = angles[:, None, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(c)) v, [..., t, c].

    An accelerator gets the fused kernel. A CPU gets the formula itself: at these short sequences torch's fused CPU
    kernel takes 7 times as long in bf16, forward and backward (64 tokens, heads of 32: 25 ms against 3.6 ms).
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1).to(v) @ v


class Attention(nn.Module):
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
        y = attend(self.query_norm(q).to(v), self.key_norm(k).to(v), v)
        return self.out(rearrange(y, "(b t) h n c -> b t n (h c)", b=b))

    def time(
        self, x: Tensor, positions: Tensor, mask: Tensor, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
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
        q = rotate(self.query_norm(q).to(v), positions)
        k = rotate(self.key_norm(k).to(v), positions)
        if past is not None:
            k = torch.cat((past.keys.to(k), k), dim=3)
            v = torch.cat((past.values.to(v), v), dim=3)
        y = attend(q, k, v, mask)
        return self.out(rearrange(y, "b n h t c -> b t n (h c)")), KeyValues(k, v)
