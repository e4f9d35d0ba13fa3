"""Which past frames a frame attends to, and which of them the cache of a stream holds.

By default a frame attends to the last ``window`` frames. So that a long rollout keeps its beginning and some of its
past, two kinds of older frames can be kept, too; the cache stays bounded:

- sink frames: the first frames of the stream (StreamingLLM, arXiv 2309.17453; for video LongLive, arXiv 2509.22622, and
  Rolling Forcing, arXiv 2509.25161). In their rotary positions they are at their true distance at first, and at most
  just beyond the oldest other frame: the distance stops growing, so that no frame of a stream is the last one that
  training has prepared for.
- memory frames: of the frames that have left the window, those whose position is a multiple of ``memory_every``, the
  newest ``memory_frames`` of them, at their true distance. This is the fixed pattern of Sparse Transformers (arXiv
  1904.10509). As in WorldKV (arXiv 2605.22718), their keys and values are those of the time when they were new.

Parallel training and streaming apply the same rule, which depends only on the positions of two frames.

Legend: b batch, t time, q queries, k keys, n tokens per frame, g key heads, s slots of the cache, c channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.checks import check_not_negative, check_positive
from vwm.nn.attention_kernels import KeyValueCache
from vwm.nn.kernel_device import kernel_device


class StreamedFrames(NamedTuple):
    """The next frames of a stream, and the cached and next frames to which they may attend.

    Attributes:
        positions: int64 [b, t], of the next frames.
        key_positions: int64 [b, s + t], of the cached and the next frames; negative for empty slots.
        mask: bool [b, 1, 1, t, s + t] (over tokens and heads).
    """

    positions: Tensor
    key_positions: Tensor
    mask: Tensor


class KeptSlots(NamedTuple):
    """What each slot of a cache holds after the next frames of a stream; one of the two is None.

    Attributes:
        replaced: bool [b, s], the slots that the only next frame takes, where all others stay.
        sources: int64 [b, s], which of the s + t cached and next frames a slot holds; any for empty slots.
    """

    replaced: Tensor | None
    sources: Tensor | None

    def keep(self, past: KeyValueCache, new: KeyValueCache) -> KeyValueCache:
        """Return the cache afterwards, from the one before [b, n, g, s, c] and the next frames [b, n, g, t, c]."""
        if self.replaced is not None:
            put = _put_on_cpu if kernel_device(new.keys) == "cpu" and not torch.compiler.is_compiling() else _put
            return put(self.replaced, past, new)
        assert self.sources is not None
        index = self.sources[:, None, None, :, None]
        seen = (torch.cat((old.to(x), x), dim=3) for old, x in zip(past, new, strict=True))
        return KeyValueCache(*(torch.take_along_dim(x, index, dim=3) for x in seen))


def _put(replaced: Tensor, past: KeyValueCache, new: KeyValueCache) -> KeyValueCache:
    """Put a frame [b, n, g, 1, c] into the slots ``replaced`` [b, s] of those before it, [b, n, g, s, c]."""
    replaced = replaced[:, None, None, :, None]
    return KeyValueCache(*(torch.where(replaced, x, old.to(x)) for old, x in zip(past, new, strict=True)))


def _put_on_cpu(replaced: Tensor, past: KeyValueCache, new: KeyValueCache) -> KeyValueCache:
    """``_put`` into the one slot of each entry, in a third of the time on a CPU."""
    if not past.keys.shape[3]:
        return past
    slot = replaced.int().argmax(dim=1)[:, None, None, None, None]
    return KeyValueCache(*(old.to(x).scatter(3, slot.expand_as(x), x) for old, x in zip(past, new, strict=True)))


@dataclass(frozen=True)
class AttentionSpan:
    """The frames to which a frame attends; see the module.

    Attributes:
        window: the last frames, including the current one.
        sink_frames: the first frames of the stream.
        memory_frames: frames between these two.
        memory_every: distance between memory frames.

    Raises:
        ValueError: a value out of range.
    """

    window: int
    sink_frames: int = 0
    memory_frames: int = 0
    memory_every: int = 1

    def __post_init__(self) -> None:
        check_positive(window=self.window, memory_every=self.memory_every)
        check_not_negative(sink_frames=self.sink_frames, memory_frames=self.memory_frames)

    @property
    def exceeds_window(self) -> bool:
        """Whether there are sink frames or memory frames."""
        return self.sink_frames > 0 or self.memory_frames > 0

    @property
    def slots(self) -> int:
        """Number of past frames that a cache holds: sinks, memory, then the window."""
        return self.sink_frames + self.memory_frames + self.window - 1

    @property
    def reach(self) -> int:
        """Number of frames that window and memory span: the distance at which frames other than sinks end."""
        return self.window + self.memory_frames * self.memory_every

    def attends(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return whether the frame at one position attends to that at another: [..., q], [..., k] -> [..., q, k]."""
        age, frame = queries[..., :, None] - keys[..., None, :], keys[..., None, :]
        attends = (age >= 0) & (age < self.window)
        if self.sink_frames:
            attends |= self.is_sink(queries, keys)
        if self.memory_frames:
            between = (age >= self.window) & (age < self.reach) & (frame >= self.sink_frames)
            attends |= between & (frame % self.memory_every == 0)
        return attends

    def is_sink(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return whether a frame is a sink that has left the window of another: [..., q], [..., k] -> [..., q, k]."""
        return (queries[..., :, None] - keys[..., None, :] >= self.window) & (keys < self.sink_frames)[..., None, :]

    def positions_for_sinks(self, positions: Tensor) -> Tensor:
        """Return the positions from which frames see the sinks: at most just beyond all other frames."""
        return positions.clamp(max=self.reach + self.sink_frames - 1)

    def slot_positions(self, position: Tensor) -> Tensor:
        """Return the positions of the cached frames after ``position`` frames: [b] -> [b, s]; negative if empty.

        Window and memory are ring buffers: a new frame takes the slot of the oldest, and all others stay where they
        are.
        """
        newest_left = position[:, None] - self.window  # of the frames that have left the window
        sinks = torch.arange(self.sink_frames, device=position.device)
        memory = _ring_positions(newest_left // self.memory_every, self.memory_frames) * self.memory_every
        window = _ring_positions(position[:, None] - 1, self.window - 1)
        return torch.cat(
            (
                torch.where(sinks <= newest_left, sinks, -1),
                torch.where(memory >= self.sink_frames, memory, -1),
                window.clamp(min=-1),
            ),
            dim=1,
        )

    def stream(self, position: Tensor, frames: int) -> StreamedFrames:
        """Describe the next ``frames`` frames after the ``position`` [b] frames seen so far by each entry."""
        positions = position[:, None] + torch.arange(frames, device=position.device)
        keys = torch.cat((self.slot_positions(position), positions), dim=1)
        mask = self.attends(positions, keys) & (keys >= 0)[:, None, :]
        return StreamedFrames(positions, keys, mask[:, None, None])

    def kept_slots(self, stream: StreamedFrames) -> KeptSlots:
        """Describe the cache after the next frames of a stream."""
        after = self.slot_positions(stream.positions[:, -1] + 1)
        if stream.positions.shape[1] == 1 and not self.exceeds_window:  # no cached frame becomes a sink or memory
            return KeptSlots(replaced=after == stream.positions, sources=None)
        # The frames of a cache differ, so that each is found by its position.
        sources = (after[:, :, None] == stream.key_positions[:, None, :]).int().argmax(dim=-1)
        return KeptSlots(replaced=None, sources=sources)

    def covers(self, frames: int) -> bool:
        """Whether each frame of a clip of this length attends to all frames before it."""
        return frames <= self.window

    def clean_context(self, seen: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mask for training with a clean context: clean frames 0..seen-1, then masked ones 1..frames, as one long clip.

        A masked frame attends to the clean frames before it and to itself, as in generation. The clean frame of the
        same index is its target and stays hidden.

        Returns:
            positions int64 [t] and a mask bool [t, t], t = seen + frames.
        """
        clean, hidden = torch.arange(seen, device=device), torch.arange(1, frames + 1, device=device)
        nothing = torch.zeros(seen, frames, dtype=torch.bool, device=device)
        past = torch.cat((self.attends(clean, clean), nothing), dim=1)
        before = self.attends(hidden, clean) & (hidden[:, None] > clean)
        present = torch.cat((before, hidden[:, None] == hidden), dim=1)
        return torch.cat((clean, hidden)), torch.cat((past, present))


def _ring_positions(newest: Tensor, slots: int) -> Tensor:
    """Return which number each slot of a ring buffer holds after the numbers up to ``newest``: [b, 1] -> [b, slots].

    A number lies in the slot of its remainder; of slots that are not filled yet, the results are negative.
    """
    places = torch.arange(slots, device=newest.device)
    return newest - (newest - places) % slots if slots else newest[:, :0]
