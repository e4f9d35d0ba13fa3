"""The efficient space-time transformer of Dreamer 4 (arXiv 2509.24527, section 3.3), with its cache.

A stack of layers, each one attention and one feed-forward. The attention of a layer is of one kind:

- ``space``: every token attends to the tokens of its own frame;
- ``time``: every token attends to the tokens at its own spatial position in past frames and this one;
- ``full``: every token attends to all tokens of the past frames and this one.

Each branch starts with RMSNorm. Queries and keys are RMS-normalized; rotary positions along time, height and width;
feed-forwards with SwiGLU; optionally fewer key heads than query heads, capped logits, and modulation of every layer by
one vector per frame (adaLN-zero: DiT, arXiv 2212.09748, section 3.2).

Two methods compute the same function: ``forward`` takes a whole clip; ``step`` takes the next frames and a state that
the caller holds. In both, a frame attends to itself and the frames before it that ``AttentionSpan`` names, in every
layer.

Legend: b batch, t time, s cached frames, n tokens per frame, d width, h heads, g key heads, c channels of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.checks import check_positive
from vwm.nn.attention import RotaryEmbedding, frame_rotary_embedding, rotary_angles, rotary_embedding
from vwm.nn.attention_kernels import KeyValueCache
from vwm.nn.attention_span import AttentionSpan, StreamedFrames
from vwm.nn.context_parallel import DividedFrames
from vwm.nn.grouped_query_attention import AttentionGeometry, AttentionKind, GroupedQueryAttention, SinkGeometry
from vwm.nn.norm import RMSNorm
from vwm.nn.sharding import local_part
from vwm.nn.space_time import TransformerState
from vwm.nn.tensor_parallel import ColumnParallelLinear, RowParallelLinear, TensorGroup


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202) with two thirds of the hidden width, or GELU; both cost 8 d^2 weights."""

    def __init__(self, width: int, kind: Literal["swiglu", "gelu"]) -> None:
        super().__init__()
        self.gated = kind == "swiglu"
        hidden = (8 * width // 3 + 7) // 8 * 8 if self.gated else 4 * width
        self.up: nn.Linear | ColumnParallelLinear = nn.Linear(width, 2 * hidden if self.gated else hidden, bias=False)
        self.down: nn.Linear | RowParallelLinear = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def divide_weights(self, group: TensorGroup) -> None:
        """Keep this process's share of the hidden units. Raises ValueError where they do not divide evenly."""
        hidden = self.down.weight.shape[1]
        self.up = ColumnParallelLinear(self.up, group, (hidden, hidden) if self.gated else (hidden,))
        self.down = RowParallelLinear(self.down, group)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        if not self.gated:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        x, gate = self.up(x).chunk(2, dim=-1)
        return self.down(x * F.silu(gate))


class VideoTransformerLayer(nn.Module):
    """One attention and one feed-forward, both residual.

    With a condition, one vector per frame shifts and scales the input of each branch and gates its output; the gates
    are initialized to zero (adaLN-zero). Without one, the last weights of the branches are initialized to zero.
    """

    def __init__(self, attention: GroupedQueryAttention, mlp: FeedForward, width: int, conditioned: bool) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.attention_norm = RMSNorm(width, elementwise_affine=not conditioned)
        self.mlp_norm = RMSNorm(width, elementwise_affine=not conditioned)
        self.modulation: nn.Linear | ColumnParallelLinear | None = nn.Linear(width, 6 * width) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
            for last in (attention.out, mlp.down):  # behind a zero gate, zero weights would get no gradient
                nn.init.xavier_uniform_(last.weight)

    def divide_weights(self, group: TensorGroup) -> None:
        """Keep this process's share of all matrices. Raises ValueError where they do not divide evenly."""
        self.attention.divide_weights(group)
        self.mlp.divide_weights(group)
        if self.modulation is not None:
            self.modulation = ColumnParallelLinear(self.modulation, group, gather=True)

    def forward(
        self, x: Tensor, geometry: AttentionGeometry, condition: Tensor | None = None, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache | None]:
        """[b, t, n, d] -> [b, t, n, d] and the cache; ``condition`` [b, t, d]."""
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
        window: number of frames that attention spans, including the current one; an ``AttentionSpan`` adds sink frames
            and memory frames, for which the transformer must be causal.
        kv_heads: g; None for ``heads``.
        attention: ``"factored"`` into layers of space and of time, or ``"full"`` (an ablation: n times the cost).
        time_every: with factored attention, every ``time_every``-th layer is temporal (2: Oasis; 4: Dreamer 4).
        causal: whether frames attend to earlier frames only, which streaming requires.
        mlp: ``"swiglu"`` or ``"gelu"``.
        soft_cap: bound of the attention logits (Dreamer 4); None disables it.
        conditioned: whether one vector per frame modulates every layer.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        window: int | AttentionSpan,
        kv_heads: int | None = None,
        attention: Literal["factored", "full"] = "factored",
        time_every: int = 2,
        causal: bool = True,
        mlp: Literal["swiglu", "gelu"] = "swiglu",
        soft_cap: float | None = None,
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, heads=heads, kv_heads=kv_heads)
        if attention == "factored" and not 2 <= time_every <= depth:
            raise ValueError(f"time_every={time_every} must be 2..depth={depth}: at least one layer must be temporal")
        self.width = width
        self.heads = heads
        self.span = window if isinstance(window, AttentionSpan) else AttentionSpan(window)
        self.causal = causal
        if not causal and self.span.exceeds_window:
            raise ValueError("sink_frames and memory_frames require causal=True; otherwise a frame sees all frames")
        self.kv_heads = kv_heads or heads
        factored: list[AttentionKind] = ["time" if (i + 1) % time_every == 0 else "space" for i in range(depth)]
        self.attention_kinds: list[AttentionKind] = factored if attention == "factored" else ["full"] * depth
        self.blocks = nn.ModuleList(
            VideoTransformerLayer(
                attention=GroupedQueryAttention(
                    width=width, heads=heads, kv_heads=self.kv_heads, kind=kind, soft_cap=soft_cap
                ),
                mlp=FeedForward(width, mlp),
                width=width,
                conditioned=conditioned,
            )
            for kind in self.attention_kinds
        )
        self.norm = RMSNorm(width, elementwise_affine=not conditioned)
        self.modulation = nn.Linear(width, 2 * width) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        coordinates: Tensor,
        condition: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        space_mask: Tensor | None = None,
        division: DividedFrames | None = None,
    ) -> Tensor:
        """Process a whole clip.

        Args:
            x: [b, t, n, d].
            coordinates: float [n, 2], row and column of each token.
            condition: [b, t, d], if the transformer is conditioned.
            positions: int64 [t], indices of the frames; by default 0, 1, 2, ...
            mask: bool [t, t], True where frame i may attend to frame j; by default the causal window (all frames if the
                transformer is not causal).
            space_mask: bool [n, n], True where token i of a frame may attend to token j of that frame; by default
                everywhere. Not supported by full attention.
            division: how the frames of the clip are divided over processes: ``x`` and ``condition`` are then of this
                process's frames, ``positions`` and ``mask`` of all. Not supported by full attention.

        Returns:
            [b, t, n, d].
        """
        if "full" in self.attention_kinds and not (space_mask is None and division is None):
            raise ValueError("full attention supports neither space_mask nor division")
        frames = x.shape[1] if division is None else sum(division.lengths)
        if positions is None:
            positions = torch.arange(frames, device=x.device)
        is_causal = mask is None and self.causal and self.span.covers(frames)
        if mask is None:
            everything = torch.ones(frames, frames, dtype=torch.bool, device=x.device)
            mask = self.span.attends(positions, positions) if self.causal else everything
        if division is not None:
            order = division.order(x.device)
            positions, mask = positions[order], mask[order][:, order]
        geometry = self._geometry(x, positions, positions, coordinates, mask, space_mask, is_causal)
        geometry = geometry._replace(division=division)
        for block in self.blocks:
            x, _ = block(x, geometry, condition)
        return self._final_norm(x, condition)

    def init_state(self, batch: int, tokens: int) -> TransformerState:
        """The state before the first frame: empty keys and values for each layer that attends in time."""
        weight = local_part(next(self.parameters()))
        layer = self.blocks[0]
        assert isinstance(layer, VideoTransformerLayer)
        kv_heads = layer.attention.kv_heads  # those of this process
        shape = (batch, tokens, kv_heads, self.span.slots, self.width // self.heads)
        empty = KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))
        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return TransformerState(position, (empty,) * sum(kind != "space" for kind in self.attention_kinds))

    def step(
        self,
        x: Tensor,
        state: TransformerState,
        coordinates: Tensor,
        condition: Tensor | None = None,
        space_mask: Tensor | None = None,
    ) -> tuple[Tensor, TransformerState]:
        """Process the next frames: [b, t, n, d] -> [b, t, n, d], and the state after them.

        The given state is not modified. Raises ValueError if the transformer is not causal.
        """
        stream = self._stream(state, x.shape[1])
        y, seen = self._process(x, state, stream, coordinates, condition, space_mask)
        kept = self.span.kept_slots(stream)
        blocks = (kept.keep(past, new) for past, new in zip(state.blocks, seen, strict=True))
        return y, TransformerState(state.position + x.shape[1], tuple(blocks))

    def predict(
        self, x: Tensor, state: TransformerState, coordinates: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Process the next frames as ``step`` does, without the state after them: [b, t, n, d] -> [b, t, n, d]."""
        return self._process(x, state, self._stream(state, x.shape[1]), coordinates, condition, None)[0]

    def _stream(self, state: TransformerState, frames: int) -> StreamedFrames:
        if not self.causal:
            raise ValueError("a transformer with causal=False attends to later frames, too, and cannot stream")
        return self.span.stream(state.position, frames)

    def _process(
        self,
        x: Tensor,
        state: TransformerState,
        stream: StreamedFrames,
        coordinates: Tensor,
        condition: Tensor | None,
        space_mask: Tensor | None,
    ) -> tuple[Tensor, list[KeyValueCache]]:
        """Process the next frames; also return their keys and values in each layer that attends in time."""
        geometry = self._geometry(x, stream.positions, stream.key_positions, coordinates, stream.mask, space_mask)
        past, seen = iter(state.blocks), []
        for block, kind in zip(self.blocks, self.attention_kinds, strict=True):
            x, new = block(x, geometry, condition, None if kind == "space" else next(past))
            if new is not None:
                seen.append(new)
        return self._final_norm(x, condition), seen

    def _final_norm(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.modulation is None:
            return self.norm(x)
        assert condition is not None
        shift, scale = self.modulation(condition)[:, :, None].chunk(2, dim=-1)
        return adaln_modulate(self.norm(x), shift, scale)

    def _geometry(
        self,
        x: Tensor,
        positions: Tensor,
        keys: Tensor,
        coordinates: Tensor,
        mask: Tensor,
        space_mask: Tensor | None,
        is_causal: bool = False,
    ) -> AttentionGeometry:
        """Geometry of frames x at positions [t] or [b, t], which attend to frames at positions ``keys``."""
        sinks = None
        if self.span.sink_frames:
            rotations = self._rotations(x, self.span.positions_for_sinks(positions), coordinates)
            is_sink = self.span.is_sink(positions, keys)
            sinks = SinkGeometry(rotations, is_sink[:, None, None] if is_sink.ndim == 3 else is_sink)
        return AttentionGeometry(self._rotations(x, positions, coordinates), mask, space_mask, sinks, is_causal)

    def _rotations(self, x: Tensor, positions: Tensor, coordinates: Tensor) -> dict[str, RotaryEmbedding]:
        """Rotary embeddings for each kind of attention in use; positions [t] or [b, t]."""
        pairs, dtype = self.width // self.heads // 2, x.dtype
        rows, columns = coordinates.unbind(-1)
        if "full" in self.attention_kinds:
            third = pairs // 3
            time = rotary_angles(positions, pairs - 2 * third, 1000)[..., :, None, :]
            space = torch.cat((rotary_angles(rows, third, 100), rotary_angles(columns, third, 100)), dim=-1)
            batch_shape = time.shape[:-2]
            whole = torch.cat(
                (
                    time.expand(*batch_shape, len(coordinates), -1),
                    space.expand(*batch_shape, *space.shape),
                ),
                dim=-1,
            )
            if whole.ndim == 4:  # one angle per batch entry: broadcast over heads
                whole = whole[:, None]
            return {"full": rotary_embedding(whole, dtype)}
        half = pairs // 2
        space = torch.cat((rotary_angles(rows, half, 100), rotary_angles(columns, pairs - half, 100)), dim=-1)
        return {"time": frame_rotary_embedding(positions, pairs, dtype), "space": rotary_embedding(space, dtype)}


def adaln_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift a normalized x (adaLN)."""
    return x * (1 + scale) + shift


def grid_coordinates(height: int, width: int, before: int = 0, after: int = 0) -> Tensor:
    """Row and column of the tokens of a grid, between tokens at (0, 0): float [before + h*w + after, 2]."""
    # Filled in place, which needs no memory on the meta device.
    coordinates = torch.zeros(before + height * width + after, 2)
    grid = coordinates[before : before + height * width].view(height, width, 2)
    grid[..., 0] = torch.arange(height)[:, None]
    grid[..., 1] = torch.arange(width)
    return coordinates
