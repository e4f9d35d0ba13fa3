"""softmax(q k^T / sqrt(c)) v, by the kernel that is fastest for its shape: the one place that decides.

Legend: b batch, h query heads, g key heads, t queries, s keys, c channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.nn.kernel_device import kernel_device


class KeyValueCache(NamedTuple):
    """Rotated keys, and values, of frames in temporal attention: [b, n, g, slots, c] with n tokens and g key heads.

    ``AttentionSpan.slot_positions`` tells which frame a slot holds. Slots that are not filled yet hold zeros and are
    masked.
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


Kernel = Literal["formula", "packed", "fused"]
"""The formula as it is written; torch's fused kernel; the fused kernel on several sequences packed into one."""

SHORT_KEYS = 32
"""Up to this number of keys, compiled code computes the formula faster than torch's fused kernels, whose tiles hold 64
to 128 queries: 1.1 ms instead of 2.1 to 2.4 for 16 and 32 frames, forward and backward (H200)."""
PACKED_KEYS = 16
PACKED_KEYS_COMPILED = 8
"""Up to this number of keys, packed sequences are at least as fast as the formula: 1.2 ms instead of 2.6 for 8 frames
(H200); uncompiled, the formula launches many kernels, and packing pays for longer ones, too."""
PACKED_TOKENS = 128
"""Tokens of a packed sequence."""
_packs = True


@contextmanager
def without_packing() -> Iterator[None]:
    """Use the fused kernel instead of packed sequences, most of whose products are masked: to count the useful ones."""
    global _packs
    before, _packs = _packs, False
    try:
        yield
    finally:
        _packs = before


def choose_kernel(
    device: str, queries: int, keys: int, only_formula: bool = False, same_mask: bool = True, compiling: bool = False
) -> Kernel:
    """Return the kernel for a shape.

    CPUs use the formula, because for short sequences torch's fused CPU kernel takes 7 times as long in bf16, forward
    and backward (64 tokens, heads of 32: 25 ms instead of 3.6 ms). So does a single query.

    Args:
        device: type of the device.
        queries, keys: their numbers in one sequence.
        only_formula: whether something is computed that the fused kernels do not support.
        same_mask: whether all sequences have the same mask, or none.
        compiling: whether the code is being compiled, which fuses the formula.
    """
    if device == "cpu" or only_formula or queries == 1:
        return "formula"
    if _packs and same_mask and keys <= (PACKED_KEYS_COMPILED if compiling else PACKED_KEYS):
        return "packed"
    return "formula" if compiling and keys <= SHORT_KEYS else "fused"


def dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    moved: MovedQueries | None = None,
    past: KeyValueCache | None = None,
    is_causal: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(c)) v: q [..., h, t, c], k and v [..., g, t, c] -> [..., h, t, c].

    With fewer key heads than query heads, groups of h / g consecutive query heads share one (GQA, arXiv 2305.13245).

    Args:
        q, k, v: queries, keys and values.
        mask: bool, broadcastable to [..., h, t, s]; True where a query may attend.
        soft_cap: bounds the logits by ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118, section 2).
        moved: queries for some of the keys.
        past: keys and values before ``k`` and ``v``, which they precede in ``mask``: [..., g, s - t, c].
        is_causal: whether ``mask`` lets every query attend to the keys up to its own, and no others.
    """
    device = kernel_device(q)
    parts = [KeyValueCache(k, v)]
    if past is not None:
        parts.insert(0, KeyValueCache(past.keys.to(k), past.values.to(v)))
    kernel = choose_kernel(
        device,
        q.shape[-2],
        sum(part.keys.shape[-2] for part in parts),
        only_formula=soft_cap is not None or moved is not None,
        same_mask=mask is None or mask.ndim == 2,
        compiling=torch.compiler.is_compiling(),
    )
    # A GPU reads the past where it lies; a CPU's caches make a copy cheaper than twice as many small products.
    if len(parts) > 1 and (kernel != "formula" or device == "cpu"):
        k, v = (torch.cat(tensors, dim=-2) for tensors in zip(*parts, strict=True))
        parts = [KeyValueCache(k, v)]
    if kernel == "formula":
        return formula_attention(q, parts, mask, soft_cap, moved)
    return packed_attention(q, k, v, mask) if kernel == "packed" else fused_attention(q, k, v, mask, is_causal)


def formula_attention(
    q: Tensor,
    parts: Sequence[KeyValueCache],
    mask: Tensor | None = None,
    soft_cap: float | None = None,
    moved: MovedQueries | None = None,
) -> Tensor:
    """See ``dot_product_attention``; ``parts`` are the keys and values in order, which are not joined."""
    logits = _attention_logits(q, parts)
    if moved is not None:
        logits = torch.where(moved.mask, _attention_logits(moved.queries, parts), logits)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    groups = parts[0].values.shape[-3]
    weights = _merge_query_groups(logits.softmax(-1).to(parts[0].values), groups)
    y, start = None, 0
    for _, values in parts:
        stop = start + values.shape[-2]
        share = weights if len(parts) == 1 else weights[..., start:stop]
        part = share * values if stop - start == 1 else share @ values
        y, start = part if y is None else y + part, stop
    assert y is not None
    return _split_query_groups(y, q.shape[-3] // groups)


def _attention_logits(q: Tensor, parts: Sequence[KeyValueCache]) -> Tensor:
    """q k^T / sqrt(c): [..., h, t, c] and keys [..., g, s, c] -> [..., h, t, s]."""
    # Query heads that share a key head become one longer query, so that keys and values need not be repeated.
    groups = parts[0].keys.shape[-3]
    queries = _merge_query_groups(q * q.shape[-1] ** -0.5, groups)
    logits = [
        (queries * keys).sum(-1, keepdim=True) if keys.shape[-2] == 1 else queries @ keys.transpose(-1, -2)
        for keys, _ in parts
    ]
    return _split_query_groups(logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1), q.shape[-3] // groups)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    """``dot_product_attention`` by torch's kernels, which are fast only with a single batch dimension."""
    batch_shape = q.shape[:-3]
    if is_causal:
        mask = None
    if mask is not None and mask.ndim > 2:
        mask = mask.expand(*batch_shape, *mask.shape[-3:]).flatten(0, -4)
    q, k, v = (x.flatten(0, -4) for x in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.unflatten(0, batch_shape)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``dot_product_attention`` with many short sequences packed into fewer long ones, by torch's kernels.

    A mask hides the sequences of a pack from each other.

    Args:
        q, k, v: see there.
        mask: bool [t, s] or None, the same for all sequences.
    """
    batch_shape, (t, s) = q.shape[:-3], (q.shape[-2], k.shape[-2])
    count = _pack_size(batch_shape.numel(), max(t, s))
    inside = torch.ones(t, s, dtype=torch.bool, device=q.device) if mask is None else mask
    same = torch.eye(count, dtype=torch.bool, device=q.device)
    packed_mask = (same[:, None, :, None] & inside[None, :, None, :]).reshape(count * t, count * s)
    packed = (x.reshape(-1, count, *x.shape[-3:]).transpose(1, 2).flatten(2, 3) for x in (q, k, v))
    q, k, v = packed
    y = fused_attention(q, k, v, packed_mask)
    return y.unflatten(2, (count, t)).transpose(1, 2).reshape(*batch_shape, *y.shape[1:2], t, y.shape[-1])


def _pack_size(sequences: int, tokens: int) -> int:
    """Return how many sequences make a pack: at most ``PACKED_TOKENS`` tokens, and a divisor of their number."""
    return max(count for count in range(1, max(PACKED_TOKENS // tokens, 1) + 1) if sequences % count == 0)


def _merge_query_groups(x: Tensor, groups: int) -> Tensor:
    """[..., h, t, c] -> [..., g, (h/g) t, c]."""
    return x if groups == x.shape[-3] else x.unflatten(-3, (groups, -1)).flatten(-3, -2)


def _split_query_groups(x: Tensor, share: int) -> Tensor:
    """[..., g, (h/g) t, c] -> [..., h, t, c]."""
    return x if share == 1 else x.unflatten(-2, (share, -1)).flatten(-4, -3)
