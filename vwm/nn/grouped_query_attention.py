"""Attention of a video transformer's layer, in space, in time or in both; its cache; fewer key heads than query heads.

Legend: b batch, t time, s cached frames, n tokens per frame, d width, h heads, g key heads, c channels of a head.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from vwm.nn.attention import (
    RotaryEmbedding,
    apply_rotary,
    heads_of_frames,
    heads_of_places,
    join_heads_of_frames,
    join_heads_of_places,
)
from vwm.nn.attention_kernels import KeyValueCache, MovedQueries, dot_product_attention
from vwm.nn.context_parallel import DividedFrames
from vwm.nn.norm import RMSNorm
from vwm.nn.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    TensorGroup,
    divide_gradients,
    divide_heads,
)

AttentionKind = Literal["space", "time", "full"]


class SinkGeometry(NamedTuple):
    """Where frames see the sink frames from; see ``AttentionSpan``.

    Attributes:
        rotations: rotary embedding of the queries for each kind of attention.
        mask: bool, broadcastable to [b, n, h, t, s + t]: the pairs of a frame and a sink frame.
    """

    rotations: dict[str, RotaryEmbedding]
    mask: Tensor


class AttentionGeometry(NamedTuple):
    """Positions and masks of the tokens, the same for all layers.

    Attributes:
        rotations: rotary embedding for each kind of attention.
        mask: bool, broadcastable to [b, n, h, t, s + t]: the frames to which a frame may attend.
        space_mask: bool [n, n], the tokens of its frame to which a token may attend; None for all.
        sinks: None without sink frames.
        is_causal: whether ``mask`` lets each frame attend to all frames before it.
        division: how frames are divided over processes; None where this one has all. Rotations and masks of ``time``
            are of all frames, in the order of ``DividedFrames.order``.
    """

    rotations: dict[str, RotaryEmbedding]
    mask: Tensor
    space_mask: Tensor | None
    sinks: SinkGeometry | None
    is_causal: bool = False
    division: DividedFrames | None = None


class GroupedQueryAttention(nn.Module):
    """Self-attention of one kind.

    Args:
        width: d.
        heads: h; must divide the width into heads of a size divisible by 4 (rotary pairs for two axes).
        kv_heads: g; must divide ``heads``.
        kind: ``space``, ``time`` or ``full``; see ``vwm.nn.video_transformer``.
        soft_cap: bound of the attention logits; None disables it.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, kind: AttentionKind, soft_cap: float | None) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise ValueError(f"heads={heads} must divide width={width} into heads of a size that 4 divides")
        if heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
        self.heads = heads
        self.kv_heads = kv_heads
        self.kind = kind
        self.soft_cap = soft_cap
        self.channels = width // heads
        self.qkv: nn.Linear | ColumnParallelLinear = nn.Linear(
            width, (heads + 2 * kv_heads) * self.channels, bias=False
        )
        self.query_norm = RMSNorm(self.channels)
        self.key_norm = RMSNorm(self.channels)
        self.out: nn.Linear | RowParallelLinear = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def divide_weights(self, group: TensorGroup) -> None:
        """Keep this process's share of the heads. Raises ValueError where they do not divide evenly."""
        heads, kv_heads = divide_heads(group, heads=self.heads, kv_heads=self.kv_heads)
        rows = tuple(count * self.channels for count in (self.heads, self.kv_heads, self.kv_heads))
        self.qkv = ColumnParallelLinear(self.qkv, group, rows)
        self.out = RowParallelLinear(self.out, group)
        for norm in (self.query_norm, self.key_norm):
            divide_gradients(norm, group)
        self.heads, self.kv_heads = heads, kv_heads

    def forward(
        self, x: Tensor, geometry: AttentionGeometry, past: KeyValueCache | None
    ) -> tuple[Tensor, KeyValueCache | None]:
        """[b, t, n, d] -> [b, t, n, d], and the keys and values of these frames (None for ``space``)."""
        division = geometry.division
        if division is None or self.kind == "space":
            return self._attend(x, geometry, past)
        y, _ = self._attend(division.frames_to_places(x), geometry, past)
        return division.places_to_frames(y, x.shape[2]), None

    def _attend(
        self, x: Tensor, geometry: AttentionGeometry, past: KeyValueCache | None
    ) -> tuple[Tensor, KeyValueCache | None]:
        b, t, n, _ = x.shape
        split = (self.heads, self.kv_heads, self.kv_heads)
        parts = self.qkv(x).split([k * self.channels for k in split], dim=-1)
        # Full attention caches its keys in the layout of temporal attention.
        heads_of = heads_of_frames if self.kind == "space" else heads_of_places
        q, k, v = (heads_of(p, count) for p, count in zip(parts, split, strict=True))
        q, k = self.query_norm(q).to(v), self.key_norm(k).to(v)
        if self.kind == "full":
            q, k = (p.permute(0, 2, 3, 1, 4) for p in (q, k))  # [b, h, t, n, c]
        moved = self._moved_queries(q, geometry.sinks, n)
        q, k = (apply_rotary(p, geometry.rotations[self.kind]) for p in (q, k))
        if self.kind == "full":
            k = k.permute(0, 3, 1, 2, 4)
        if self.kind == "space":
            y = dot_product_attention(q, k, v, geometry.space_mask, self.soft_cap)
            return self.out(join_heads_of_frames(y, b)), None
        seen = KeyValueCache(k, v)
        if self.kind == "time":
            y = dot_product_attention(q, k, v, geometry.mask, self.soft_cap, moved, past, geometry.is_causal)
            return self.out(join_heads_of_places(y)), seen
        k, v = _frames_as_one_sequence(seen)
        y = dot_product_attention(
            q.flatten(2, 3),
            k,
            v,
            _mask_of_tokens(geometry.mask, n),
            self.soft_cap,
            moved,
            None if past is None else _frames_as_one_sequence(past),
        )
        return self.out(y.unflatten(2, (t, n)).permute(0, 2, 3, 1, 4).flatten(3)), seen

    def _moved_queries(self, q: Tensor, sinks: SinkGeometry | None, tokens: int) -> MovedQueries | None:
        """Rotate queries as the sink frames see them; None for ``space`` and without sinks."""
        if sinks is None or self.kind == "space":
            return None
        q = apply_rotary(q, sinks.rotations[self.kind])
        if self.kind == "time":
            return MovedQueries(q, sinks.mask)
        return MovedQueries(q.flatten(2, 3), _mask_of_tokens(sinks.mask, tokens))


def _frames_as_one_sequence(frames: KeyValueCache) -> KeyValueCache:
    """[b, n, g, s, c] -> [b, g, s n, c]."""
    return KeyValueCache(*(x.permute(0, 2, 3, 1, 4).flatten(2, 3) for x in frames))


def _mask_of_tokens(mask: Tensor, tokens: int) -> Tensor:
    """Repeat a mask of frames for their n tokens: [t, s] -> [t n, s n], [b, 1, 1, t, s] -> [b, 1, t n, s n]."""
    mask = mask.repeat_interleave(tokens, dim=-1).repeat_interleave(tokens, dim=-2)
    return mask[:, :, 0] if mask.ndim == 5 else mask
