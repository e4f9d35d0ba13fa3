"""The factored space-time transformer (Genie's ST-transformer, arXiv 2402.15391, section 2.1) with its cache.

A block attends in space within each frame, then causally in time at each spatial position, then applies a feed-forward.
Two methods compute the same function:

- ``forward`` takes a whole clip;
- ``step`` takes the next frames and a state that the caller holds.

In both, a frame attends to itself and the ``window - 1`` frames before it, in every block.

Legend: b batch, t time, n tokens per frame, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vwm.nn.attention import RotaryEmbedding, SpaceTimeAttention, frame_rotary_embedding
from vwm.nn.attention_kernels import KeyValueCache
from vwm.nn.attention_span import AttentionSpan, StreamedFrames
from vwm.nn.context_parallel import DividedFrames
from vwm.nn.precision import matmul_dtype
from vwm.nn.tensor_parallel import ColumnParallelLinear, RowParallelLinear, TensorGroup


class TransformerState(NamedTuple):
    """State of a transformer in streaming mode.

    Attributes:
        position: int64 [b], number of frames seen so far.
        blocks: keys and values of the past frames to which later ones attend (``AttentionSpan.slots``), one entry per
            block that attends in time.
    """

    position: Tensor
    blocks: tuple[KeyValueCache, ...]


class SpaceTimeBlock(nn.Module):
    """Space attention, causal time attention, feed-forward; pre-norm, residual branches start at zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.space_norm = nn.LayerNorm(width, bias=False)
        self.space = SpaceTimeAttention(width, heads)
        self.time_norm = nn.LayerNorm(width, bias=False)
        self.time = SpaceTimeAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        out = nn.Linear(hidden, width)
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), out)

    def divide_weights(self, group: TensorGroup) -> None:
        """Keep this process's share of heads and hidden units. Raises ValueError where they do not divide evenly."""
        self.space.divide_weights(group)
        self.time.divide_weights(group)
        self.mlp[0] = ColumnParallelLinear(self.mlp[0], group)
        self.mlp[2] = RowParallelLinear(self.mlp[2], group)

    def forward(
        self,
        x: Tensor,
        rotation: RotaryEmbedding,
        mask: Tensor,
        past: KeyValueCache | None = None,
        is_causal: bool = False,
        division: DividedFrames | None = None,
    ) -> tuple[Tensor, KeyValueCache]:
        """[b, t, n, d] -> [b, t, n, d], and the keys and values of these frames; see ``attend_time``.

        With a division, ``x`` holds this process's frames, and keys and values are those of its places in all frames.
        """
        x = x + self.space.attend_space(self.space_norm(x))
        y = self.time_norm(x)
        if division is not None:
            y = division.frames_to_places(y)
        y, seen = self.time.attend_time(y, rotation, mask, past, is_causal)
        if division is not None:
            y = division.places_to_frames(y, x.shape[2])
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), seen


class SpaceTimeTransformer(nn.Module):
    """A stack of space-time blocks with a final norm.

    Args:
        width: d.
        depth: number of blocks.
        heads: attention heads.
        window: number of frames that temporal attention spans, including the current one.
        mlp_ratio: hidden width of the feed-forward over d.
    """

    def __init__(self, width: int, depth: int, heads: int, window: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.span = AttentionSpan(window)
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        division: DividedFrames | None = None,
    ) -> Tensor:
        """Process a whole clip.

        Args:
            x: [b, t, n, d].
            positions: int64 [t], indices of the frames; by default 0, 1, 2, ...
            mask: bool [t, t], True where frame i may attend to frame j; by default the causal window.
            division: how the frames of the clip are divided over processes: ``x`` is then of this process's frames,
                ``positions`` and ``mask`` of all.

        Returns:
            [b, t, n, d].
        """
        frames = x.shape[1] if division is None else sum(division.lengths)
        if positions is None:
            positions = torch.arange(frames, device=x.device)
        is_causal = mask is None and self.span.covers(frames)
        if mask is None:
            mask = self.span.attends(positions, positions)
        if division is not None:
            order = division.order(x.device)
            positions, mask = positions[order], mask[order][:, order]
        rotation = self._rotation(x, positions)
        for block in self.blocks:
            x, _ = block(x, rotation, mask, None, is_causal, division)
        return self.norm(x)

    def init_state(self, batch: int, tokens: int) -> TransformerState:
        """The state before the first frame, for frames of ``tokens`` tokens."""
        weight = self.norm.weight
        block = next(iter(self.blocks), None)
        heads = block.time.heads if isinstance(block, SpaceTimeBlock) else self.heads  # those of this process
        shape = (batch, tokens, heads, self.span.slots, self.width // self.heads)
        empty = KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))
        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return TransformerState(position, (empty,) * len(self.blocks))

    def step(self, x: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Process the next frames: [b, t, n, d] -> [b, t, n, d], and the state after them.

        The given state is not modified.
        """
        stream = self.span.stream(state.position, x.shape[1])
        x, seen = self._process(x, state, stream)
        kept = self.span.kept_slots(stream)
        blocks = (kept.keep(past, new) for past, new in zip(state.blocks, seen, strict=True))
        return x, TransformerState(state.position + x.shape[1], tuple(blocks))

    def predict(self, x: Tensor, state: TransformerState) -> Tensor:
        """Process the next frames as ``step`` does, without the state after them: [b, t, n, d] -> [b, t, n, d]."""
        return self._process(x, state, self.span.stream(state.position, x.shape[1]))[0]

    def _process(
        self, x: Tensor, state: TransformerState, stream: StreamedFrames
    ) -> tuple[Tensor, list[KeyValueCache]]:
        """Process the next frames; also return their keys and values in each block."""
        rotation, seen = self._rotation(x, stream.positions), []
        for block, past in zip(self.blocks, state.blocks, strict=True):
            x, new = block(x, rotation, stream.mask, past)
            seen.append(new)
        return self.norm(x), seen

    def _rotation(self, x: Tensor, positions: Tensor) -> RotaryEmbedding:
        """Rotary embedding of all blocks, in the type of their queries."""
        return frame_rotary_embedding(positions, self.width // self.heads // 2, matmul_dtype(x))
