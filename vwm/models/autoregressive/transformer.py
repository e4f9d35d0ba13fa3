"""A causal transformer over the tokens of frames and actions, with a cache of whole frames.

The sequence is the tokens of frame 0, the action that leads to frame 1, the tokens of frame 1, and so on: token i is of
place i modulo n + 1, and the place n is the action's. An action and the frame that it leads to are a group; frame 0 is
a group without an action. Two methods compute the same function:

- ``forward`` takes the sequence of a clip, from its first frame on;
- ``extend`` takes the next tokens of a group, given the cached groups before it and the tokens of the group so far.

Two kinds of positions:

- ``rotary``: attention depends on distances (RoFormer, arXiv 2104.09864), and each group attends to the ``window`` last
  ones. The cache is a ring, and the stream has no end.
- ``learned``: one vector for each of the positions of ``window`` frames, as in GPT-2 and IRIS (arXiv 2209.00588). Each
  token attends to all before it, and the stream has to begin anew where these positions end.

Legend: b batch, q tokens, n tokens per frame, m = n + 1 of a group, s cached groups, d width, h heads, c channels of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.checks import check_fraction, check_positive
from vwm.core.seeds import fold_in, seeded_uniform
from vwm.nn.attention import RotaryEmbedding, apply_rotary, rotary_angles, rotary_embedding
from vwm.nn.attention_kernels import KeyValueCache, dot_product_attention, formula_attention
from vwm.nn.attention_span import AttentionSpan
from vwm.nn.clip_draws import draw_seeds
from vwm.nn.precision import matmul_dtype

PositionKind = Literal["rotary", "learned"]
ROTARY_BASE = 10_000.0


class TokenCache(NamedTuple):
    """What later groups attend to.

    Attributes:
        position: int64 [b], number of frames so far; since the last new beginning, with learned positions.
        blocks: keys and values of the last groups, [b, h, s m, c] each, one entry per block.
    """

    position: Tensor
    blocks: tuple[KeyValueCache, ...]


class TokenGroup(NamedTuple):
    """An action and the tokens of the frame that it leads to, as far as they are known.

    Attributes:
        position: int64 [b], number of frames before it.
        cached: bool [b, 1, 1, s m], the cached tokens to which it attends.
        past: keys and values of the cached groups, [b, h, s m, c], one entry per block.
        own: keys and values of its tokens so far, [b, h, q, c], one entry per block.
    """

    position: Tensor
    cached: Tensor
    past: tuple[KeyValueCache, ...]
    own: tuple[KeyValueCache, ...]


class CausalBlock(nn.Module):
    """Attention and feed-forward, with norms before both (GPT-2).

    Args:
        width: d.
        heads: h.
        dropout: share of attention weights, and of the outputs of both branches, that are zeroed in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        x: Tensor,
        rotation: RotaryEmbedding | None,
        mask: Tensor,
        is_causal: bool = False,
        seed: Tensor | None = None,
        past: Sequence[KeyValueCache] = (),
    ) -> tuple[Tensor, KeyValueCache]:
        """Process tokens.

        Args:
            x: [b, q, d].
            rotation: of the tokens; None for learned positions.
            mask: bool, broadcastable to [b, h, q, keys]; True where a query may attend.
            is_causal: whether ``mask`` lets every query attend to the keys up to its own, and no others.
            seed: int64 [b], of the dropout; None for none.
            past: keys and values before those of ``x``, in parts.

        Returns:
            [b, q, d], and the keys and values of these tokens.
        """
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = apply_rotary(q, rotation), apply_rotary(k, rotation)
        new = KeyValueCache(k, v)
        if past:
            y = formula_attention(q, [*(KeyValueCache(p.keys.to(k), p.values.to(v)) for p in past), new], mask)
        elif seed is not None and self.dropout:
            y = self._attend_with_dropout(q, new, mask, fold_in(seed, 0))
        else:
            y = dot_product_attention(q, k, v, mask, is_causal=is_causal)
        x = x + self._drop(self.out(y.transpose(1, 2).flatten(2)), seed, 1)
        return x + self._drop(self.mlp(self.mlp_norm(x)), seed, 2), new

    def _attend_with_dropout(self, q: Tensor, new: KeyValueCache, mask: Tensor, seed: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ new.keys.transpose(-1, -2)
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1).to(new.values)
        return drop(weights, self.dropout, seed) @ new.values

    def _drop(self, x: Tensor, seed: Tensor | None, stream: int) -> Tensor:
        return x if seed is None else drop(x, self.dropout, fold_in(seed, stream))


class TokenTransformer(nn.Module):
    """A stack of causal blocks over groups of tokens; see the module.

    Args:
        tokens_per_frame: n.
        width: d.
        depth: number of blocks.
        heads: h.
        window: number of frames of the context, the current one included.
        positions: see the module.
        dropout: see ``CausalBlock``; also the share of the inputs that are zeroed.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        tokens_per_frame: int,
        width: int,
        depth: int,
        heads: int,
        window: int,
        positions: PositionKind = "rotary",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(tokens_per_frame=tokens_per_frame, width=width, depth=depth, heads=heads)
        check_fraction(dropout=dropout)
        if positions not in ("rotary", "learned"):
            raise ValueError(f"positions={positions!r} must be 'rotary' or 'learned'")
        if width % (2 * heads):
            raise ValueError(f"heads={heads} must divide width={width} into heads of an even size")
        if window < 2:
            raise ValueError(f"window={window} must be 2 or more: the frame that is predicted, and one before it")
        self.group = tokens_per_frame + 1
        self.width = width
        self.heads = heads
        self.span = AttentionSpan(window)
        self.restarts = positions == "learned"
        self.dropout = dropout
        places = (window if self.restarts else 1) * self.group
        self.places = nn.Parameter(torch.empty(places, width).normal_(std=0.02))
        self.blocks = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Process the sequence of a clip: [b, q, d] -> [b, q, d].

        Raises:
            ValueError: it is longer than learned positions.
        """
        index = torch.arange(x.shape[1], device=x.device)
        if self.restarts and len(index) > len(self.places):
            raise ValueError(
                f"a clip of {len(index) / self.group:.3g} frames is longer than the learned positions of "
                f"window={self.span.window}: raise dynamics.window, or lower data.clip_length"
            )
        age, group = index[:, None] - index, (index + 1) // self.group
        mask = age >= 0
        is_causal = self.restarts or int(group[-1]) < self.span.window
        if not is_causal:
            mask &= group[:, None] - group < self.span.window
        seeds: list[Tensor | None] = [None] * (len(self.blocks) + 1)
        if self.training and self.dropout:
            seeds = [draw_seeds(len(x), x.device) for _ in seeds]
        x = x + self.places[index % len(self.places)]
        if seeds[-1] is not None:
            x = drop(x, self.dropout, seeds[-1])
        rotation = self._rotation(x, index)
        for block, seed in zip(self.blocks, seeds, strict=False):
            x, _ = block(x, rotation, mask, is_causal, seed)
        return self.norm(x)

    def init_cache(self, batch: int) -> TokenCache:
        """Return the cache before the first frame."""
        weight = self.norm.weight
        shape = (batch, self.heads, self.span.slots * self.group, self.width // self.heads)
        empty = KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))
        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return TokenCache(position, (empty,) * len(self.blocks))

    def open_group(self, cache: TokenCache) -> TokenGroup:
        """Return the next group, without a token yet. With learned positions, the cache holds less than a window."""
        slots = self.span.slot_positions(cache.position)
        index = slots[..., None] * self.group + torch.arange(self.group, device=slots.device) - 1
        cached = ((slots[..., None] >= 0) & (index >= 0)).flatten(1)
        none = cache.blocks[0].keys[:, :, :0]
        return TokenGroup(
            position=cache.position,
            cached=cached[:, None, None],
            past=cache.blocks,
            own=(KeyValueCache(none, none),) * len(self.blocks),
        )

    def extend(self, x: Tensor, group: TokenGroup) -> tuple[Tensor, TokenGroup]:
        """Process the next tokens of a group: [b, q, d] -> [b, q, d], and the group with them.

        The group before the first action has one, too, for equal shapes: no token but itself attends to it.
        """
        begun = group.own[0].keys.shape[2]
        own = torch.arange(begun + x.shape[1], device=x.device)
        queries = own[begun:]
        exists = (own > 0) | (group.position[:, None] > 0)
        attends = (queries[:, None] >= own) & exists[:, None] | (queries[:, None] == own)
        mask = torch.cat((group.cached.expand(-1, 1, len(queries), -1), attends[:, None]), dim=-1)
        index = group.position[:, None] * self.group + queries - 1
        x = x + self.places[index.clamp(min=0) % len(self.places) if self.restarts else index % len(self.places)]
        rotation, seen = self._rotation(x, index[:, None]), []
        for block, past, before in zip(self.blocks, group.past, group.own, strict=True):
            x, new = block(x, rotation, mask, False, None, (past, before) if begun else (past,))
            seen.append(KeyValueCache(*(torch.cat((old.to(k), k), dim=2) for old, k in zip(before, new, strict=True))))
        return self.norm(x), group._replace(own=tuple(seen))

    def close_group(self, group: TokenGroup) -> TokenCache:
        """Return the cache after a group with all its tokens: it takes the slot of the oldest."""
        slots = self.span.slots
        place = torch.arange(slots, device=group.position.device)
        replaced = (place == group.position[:, None] % slots)[:, None, :, None, None]

        def keep(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(replaced, new[:, :, None], old.to(new).unflatten(2, (slots, self.group))).flatten(2, 3)

        pairs = zip(group.past, group.own, strict=True)
        blocks = tuple(KeyValueCache(*map(keep, past, own)) for past, own in pairs)
        return TokenCache(group.position + 1, blocks)

    def is_full(self, cache: TokenCache) -> Tensor:
        """Return which streams have no position for another frame: bool [b]."""
        return cache.position >= self.span.window if self.restarts else torch.zeros_like(cache.position).bool()

    def _rotation(self, x: Tensor, index: Tensor) -> RotaryEmbedding | None:
        if self.restarts:
            return None
        return rotary_embedding(rotary_angles(index, self.width // self.heads // 2, ROTARY_BASE), matmul_dtype(x))


def drop(x: Tensor, share: float, seed: Tensor) -> Tensor:
    """Zero a share of the entries of x [b, ...] and scale the others, a function of seeds int64 [b]."""
    return x * (seeded_uniform(seed, *x.shape[1:]) >= share) / (1 - share)
