"""The efficient space-time transformer of Dreamer 4 (arXiv 2509.24527, section 3.3), with its cache.

A stack of layers, each one attention and one feed-forward. The attention of a layer is of one kind:

- ``space``: every token attends to the tokens of its own frame;
- ``time``: every token attends to the tokens at its own place in the past frames and this one;
- ``full``: every token attends to all tokens of the past frames and this one.

Before each, RMS norm; RMS-normalised queries and keys; rotary positions along time, height and width; feed-forwards
with SwiGLU; optionally fewer key heads than query heads, capped logits, and modulation of every layer by a vector a
frame (adaLN-zero: DiT, arXiv 2212.09748, section 3.2).

There are two ways through the same weights, and they agree exactly: ``forward`` takes a whole clip; ``step`` takes the
next frame or frames and a state that the caller holds. The rule past the window, in both: a frame attends to itself and
the ``window - 1`` frames before it, in every layer.

Legend: b batch, t time, s remembered frames, n tokens a frame, d width, h heads, g key heads, c channels of a head.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vwm.nn.attention import (
    KeyValueCache,
    RotaryEmbedding,
    apply_rotary,
    dot_product_attention,
    rotary_angles,
    rotary_embedding,
)
from vwm.nn.norm import RMSNorm
from vwm.nn.space_time import TransformerState, causal_window_mask, streaming_window_mask

AttentionKind = Literal["space", "time", "full"]


class AttentionGeometry(NamedTuple):
    """Where the tokens of a pass stand and what may look at what; the same for every layer.

    Attributes:
        rotations: by kind of attention.
        mask: bool, broadcastable to [b, n, h, t, s + t]: which frames a frame may look at.
        space_mask: bool [n, n], which tokens of a frame a token of the frame may look at; None: all.
    """

    rotations: dict[str, RotaryEmbedding]
    mask: Tensor
    space_mask: Tensor | None


class GroupedQueryAttention(nn.Module):
    """Self-attention of one kind.

    Args:
        width: d.
        heads: h; must divide the width into heads of a size that 4 divides (two axes of turning pairs).
        kv_heads: g; must divide ``heads``.
        kind: see the module.
        soft_cap: bound of the logits; None bounds them not.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, kind: AttentionKind, soft_cap: float | None) -> None:
        super().__init__()
        if width % heads or (width // heads) % 4:
            raise ValueError(f"heads={heads} must divide width={width} into heads of a size that 4 divides")
        if heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
        self.heads, self.kv_heads, self.kind, self.soft_cap = heads, kv_heads, kind, soft_cap
        channels = width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * channels, bias=False)
        self.query_norm = RMSNorm(channels)
        self.key_norm = RMSNorm(channels)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Tensor, geometry: AttentionGeometry, past: KeyValueCache | None
    ) -> tuple[Tensor, KeyValueCache | None]:
        """[b, t, n, d] -> [b, t, n, d], and the keys and values for the frames to come (None where it keeps none)."""
        b, t, n, _ = x.shape
        form = {"space": "b t n (h c) -> (b t) h n c", "time": "b t n (h c) -> b n h t c"}
        split = (self.heads, self.kv_heads, self.kv_heads)
        c = x.shape[-1] // self.heads
        parts = self.qkv(x).split([k * c for k in split], dim=-1)
        # Keys of full attention are kept as those of time attention are, a place at a time.
        pattern = form["space" if self.kind == "space" else "time"]
        q, k, v = (rearrange(p, pattern, h=count) for p, count in zip(parts, split, strict=True))
        if self.kind == "full":
            q, k = (rearrange(p, "b n h t c -> b h t n c") for p in (self.query_norm(q).to(v), self.key_norm(k).to(v)))
            q, k = (apply_rotary(p, geometry.rotations["full"]) for p in (q, k))
            k = rearrange(k, "b h t n c -> b n h t c")
        else:
            rotation = geometry.rotations[self.kind]
            q, k = apply_rotary(self.query_norm(q).to(v), rotation), apply_rotary(self.key_norm(k).to(v), rotation)
        if self.kind == "space":
            y = dot_product_attention(q, k, v, geometry.space_mask, self.soft_cap)
            return self.out(rearrange(y, "(b t) h n c -> b t n (h c)", b=b)), None
        if past is not None:
            k = torch.cat((past.keys.to(k), k), dim=3)
            v = torch.cat((past.values.to(v), v), dim=3)
        if self.kind == "time":
            y = dot_product_attention(q, k, v, geometry.mask, self.soft_cap)
            return self.out(rearrange(y, "b n h t c -> b t n (h c)")), KeyValueCache(k, v)
        keys, values = (rearrange(p, "b n h s c -> b h (s n) c") for p in (k, v))
        mask = geometry.mask.repeat_interleave(n, dim=-1).repeat_interleave(n, dim=-2)
        if mask.ndim == 5:  # [b, 1, 1, t, s + t], a mask a world
            mask = mask[:, :, 0]
        y = dot_product_attention(q.flatten(2, 3), keys, values, mask, self.soft_cap)
        return self.out(rearrange(y, "b h (t n) c -> b t n (h c)", t=t)), KeyValueCache(k, v)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202) with two thirds of the hidden width, or GELU; both cost 8 d^2 weights."""

    def __init__(self, width: int, kind: Literal["swiglu", "gelu"]) -> None:
        super().__init__()
        self.gated = kind == "swiglu"
        hidden = (8 * width // 3 + 7) // 8 * 8 if self.gated else 4 * width
        self.up = nn.Linear(width, 2 * hidden if self.gated else hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.silu(gate))


class VideoTransformerLayer(nn.Module):
    """One attention and one feed-forward, both residual.

    With a condition, a vector a frame shifts and scales what each branch reads and gates what it adds; the gates
    start at zero (adaLN-zero). Without one, the branches' last weights start at zero.
    """

    def __init__(self, attention: GroupedQueryAttention, mlp: FeedForward, width: int, conditioned: bool) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.attention_norm = RMSNorm(width, weighted=not conditioned)
        self.mlp_norm = RMSNorm(width, weighted=not conditioned)
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
            for last in (attention.out, mlp.down):  # the gates are zero: zero weights behind them would never move
                nn.init.xavier_uniform_(last.weight)

    def forward(
        self, x: Tensor, geometry: AttentionGeometry, condition: Tensor | None = None, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache | None]:
        """[b, t, n, d] -> [b, t, n, d] and what to remember; ``condition`` [b, t, d]."""
        if self.modulation is None:
            y, seen = self.attention(self.attention_norm(x), geometry, past)
            x = x + y
            return x + self.mlp(self.mlp_norm(x)), seen
        assert condition is not None
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].chunk(6, dim=-1)
        y, seen = self.attention(adaln_modulate(self.attention_norm(x), shift, scale), geometry, past)
        x = x + gate * y
        return x + gate2 * self.mlp(adaln_modulate(self.mlp_norm(x), shift2, scale2)), seen


class VideoTransformer(nn.Module):
    """A stack of layers and a final norm.

    Args:
        width: d.
        depth: number of layers.
        heads: h.
        window: frames that attention spans, the present one included.
        kv_heads: g; None for as many as ``heads``.
        attention: ``"factored"`` into layers of space and of time, or ``"full"`` (an ablation: n times the cost).
        time_every: of factored attention, every so many-th layer is one of time (2: in turn, as Oasis; 4: Dreamer 4).
        causal: whether frames look at earlier frames only. One that is not can neither stream nor play.
        mlp: ``"swiglu"`` or ``"gelu"``.
        soft_cap: bound of the attention logits (Dreamer 4); None bounds them not.
        conditioned: whether a vector a frame modulates every layer.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        window: int,
        kv_heads: int | None = None,
        attention: Literal["factored", "full"] = "factored",
        time_every: int = 2,
        causal: bool = True,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        soft_cap: float | None = None,
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window must be at least 1 frame, got {window}")
        if attention == "factored" and not 2 <= time_every <= depth:
            raise ValueError(f"time_every={time_every} must be 2..depth={depth}: some layer must look back in time")
        self.width, self.heads, self.window, self.causal = width, heads, window, causal
        self.kv_heads = kv_heads or heads
        self.checkpointing = False
        factored: list[AttentionKind] = ["time" if (i + 1) % time_every == 0 else "space" for i in range(depth)]
        self.kinds: list[AttentionKind] = factored if attention == "factored" else ["full"] * depth
        self.blocks = nn.ModuleList(
            VideoTransformerLayer(
                GroupedQueryAttention(width, heads, self.kv_heads, kind, soft_cap),
                FeedForward(width, mlp),
                width,
                conditioned,
            )
            for kind in self.kinds
        )
        self.norm = RMSNorm(width, weighted=not conditioned)
        self.modulation = nn.Linear(width, 2 * width) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        places: Tensor,
        condition: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        space_mask: Tensor | None = None,
    ) -> Tensor:
        """A whole clip at once.

        Args:
            x: [b, t, n, d].
            places: float [n, 2], row and column of each token.
            condition: [b, t, d], where the transformer is conditioned.
            positions: int64 [t], the frames' numbers; by default 0, 1, 2, ...
            mask: bool [t, t], True where frame i may look at frame j; by default the causal window (or everything,
                where the transformer is not causal).
            space_mask: bool [n, n], True where token i of a frame may look at token j of that frame; by default
                everywhere. Layers of full attention take none.

        Returns:
            [b, t, n, d].
        """
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        if mask is None:
            mask = causal_window_mask(positions, positions, self.window) if self.causal else None
        if mask is None:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        if space_mask is not None and "full" in self.kinds:
            raise ValueError("full attention takes no space_mask")
        geometry = AttentionGeometry(self._rotations(x, positions, places), mask, space_mask)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x, _ = checkpoint(block, x, geometry, condition, use_reentrant=False)
            else:
                x, _ = block(x, geometry, condition)
        return self._finish(x, condition)

    def init_state(self, batch: int, tokens: int) -> TransformerState:
        """The state of worlds that have seen nothing: keys and values a layer that looks back."""
        weight = next(self.parameters())
        shape = (batch, tokens, self.kv_heads, self.window - 1, self.width // self.heads)
        empty = KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))
        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return TransformerState(position, (empty,) * sum(kind != "space" for kind in self.kinds))

    def step(
        self,
        x: Tensor,
        state: TransformerState,
        places: Tensor,
        condition: Tensor | None = None,
        space_mask: Tensor | None = None,
    ) -> tuple[Tensor, TransformerState]:
        """The next frames of each world: [b, t, n, d] -> [b, t, n, d], and the state after them.

        The given state is left as it was, so dropping the returned one makes this a look that leaves no trace.
        Raises ValueError where the transformer is not causal.
        """
        if not self.causal:
            raise ValueError("a transformer with causal=False looks at later frames too and cannot stream")
        frames = x.shape[1]
        positions, mask = streaming_window_mask(state.position, frames, self.window)
        geometry = AttentionGeometry(self._rotations(x, positions, places), mask, space_mask)
        memory, kept = iter(state.blocks), []
        for block, kind in zip(self.blocks, self.kinds, strict=True):
            x, seen = block(x, geometry, condition, None if kind == "space" else next(memory))
            if seen is not None:
                kept.append(KeyValueCache(seen.keys[..., frames:, :], seen.values[..., frames:, :]))
        return self._finish(x, condition), TransformerState(state.position + frames, tuple(kept))

    def _finish(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.modulation is None:
            return self.norm(x)
        assert condition is not None
        shift, scale = self.modulation(condition)[:, :, None].chunk(2, dim=-1)
        return adaln_modulate(self.norm(x), shift, scale)

    def _rotations(self, x: Tensor, positions: Tensor, places: Tensor) -> dict[str, RotaryEmbedding]:
        """Angles for each kind of attention that there is; positions [t] or [b, t]."""
        pairs, dtype = self.width // self.heads // 2, x.dtype
        rows, columns = places.unbind(-1)
        if "full" in self.kinds:
            third = pairs // 3
            time = rotary_angles(positions, pairs - 2 * third, 1000)[..., :, None, :]
            space = torch.cat((rotary_angles(rows, third, 100), rotary_angles(columns, third, 100)), dim=-1)
            lead = time.shape[:-2]
            whole = torch.cat(
                (
                    time.expand(*lead, len(places), -1),
                    space.expand(*lead, *space.shape),
                ),
                dim=-1,
            )
            if whole.ndim == 4:  # an angle a world: broadcast over heads
                whole = whole[:, None]
            return {"full": rotary_embedding(whole, dtype)}
        time = rotary_angles(positions, pairs, 1000)
        if time.ndim == 3:  # broadcast over tokens and heads
            time = time[:, None, None]
        half = pairs // 2
        space = torch.cat((rotary_angles(rows, half, 100), rotary_angles(columns, pairs - half, 100)), dim=-1)
        return {"time": rotary_embedding(time, dtype), "space": rotary_embedding(space, dtype)}


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """What adaLN does to a normalised x."""
    return x * (1 + scale) + shift


def grid_coordinates(height: int, width: int, extra: int = 0) -> Tensor:
    """float [extra + h*w, 2]: row and column of a grid's tokens, after ``extra`` tokens that stand nowhere (0, 0)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns), dim=-1).flatten(0, 1).float()
    return torch.cat((torch.zeros(extra, 2), places))
