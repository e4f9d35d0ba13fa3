"""Clips whose frames are divided over processes (context parallelism), for attention that is factored.

Each process of a group computes some frames of every clip. Attention in space, feed-forwards, embeddings and heads
concern single frames. Before attention in time, the processes exchange frames for places: each gets all frames of some
spatial positions, attends as one process would, and the exchange is undone. (DeepSpeed Ulysses, arXiv 2309.14509, does
so with heads; places need neither as many heads nor as many key heads as there are processes.)

Predictions are joined, and every process of a group computes the loss of whole clips. Gradients are those of the sum of
the losses of all processes, each a function of what the others sent it: averaged over all processes, as where clips are
not divided, they are those of the mean loss.

Legend: b batch, t time, n tokens per frame, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(eq=False)
class ContextGroup:
    """The processes that share clips.

    Attributes:
        size: their number.
        rank: which of them this one is.
        processes: None where this one is imagined, as for estimates of memory.
    """

    size: int
    rank: int
    processes: dist.ProcessGroup | None = None

    def exchange(self, received: Tensor, sent: Tensor, received_sizes: list[int], sent_sizes: list[int]) -> None:
        """Send the parts of one vector to the processes, and receive those of another."""
        dist.all_to_all_single(received, sent, received_sizes, sent_sizes, group=self.processes)

    def all_reduce(self, x: Tensor) -> None:
        """Sum over the processes in place."""
        dist.all_reduce(x, group=self.processes)

    def sizes(self, count: int) -> list[int]:
        """Return how many of ``count`` frames or places each process gets: equally many, or one fewer."""
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def part(self, x: Tensor, dim: int) -> Tensor:
        """Return this process's part of a tensor that all of them have."""
        return x.split(self.sizes(x.shape[dim]), dim)[self.rank]

    def sum(self, part: Tensor) -> Tensor:
        """Sum what each process computed from its frames."""
        total: Tensor = _Sum.apply(part, self)
        return total


def make_context_group(size: int, members: int = 1) -> ContextGroup:
    """Group every ``size`` consecutive processes, and return the group of this one.

    Args:
        size: the processes of a group.
        members: processes that work on the same frames, in whose place a process of the group is (tensor parallelism):
            of every ``size * members`` consecutive processes, those with the same number among their members.

    Raises:
        ValueError: ``size * members`` does not divide the number of processes.
    """
    check_group_size(size * members, dist.get_world_size())
    first = torch.arange(dist.get_world_size()).view(-1, size, members).transpose(1, 2).reshape(-1, size)
    group, _ = dist.new_subgroups_by_enumeration(first.tolist())
    assert isinstance(group, dist.ProcessGroup)
    return ContextGroup(size, dist.get_rank(group), group)


def check_group_size(size: int, processes: int, setting: str = "context_parallel") -> None:
    """Raise ValueError where groups of ``size`` processes, as a setting demands, cannot be made of all of them."""
    if size < 1 or processes % size:
        raise ValueError(
            f"{setting}={size}: {processes} processes cannot be divided into groups of {size}. Train on a multiple of "
            f"{size} (trainer.devices, trainer.num_nodes, or torchrun), or lower {setting}"
        )


@dataclass(frozen=True)
class DividedFrames:
    """How the frames of clips are divided over a group.

    Clips may have several segments (past and noisy frames of the same times), each of which is divided by itself, so
    that all processes have equally many frames of each.

    Attributes:
        group: the processes.
        lengths: frames of each segment.

    Raises:
        ValueError: a segment has fewer frames than there are processes.
    """

    group: ContextGroup
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.lengths) < self.group.size:
            raise ValueError(
                f"context_parallel={self.group.size} processes cannot divide {min(self.lengths)} frames: raise "
                "data.clip_length, or lower context_parallel"
            )

    @cached_property
    def counts(self) -> list[int]:
        """Frames of each process, of all segments together."""
        return [sum(sizes) for sizes in zip(*(self.group.sizes(n) for n in self.lengths), strict=True)]

    @property
    def own_lengths(self) -> list[int]:
        """Frames of this process in each segment."""
        return [self.group.sizes(length)[self.group.rank] for length in self.lengths]

    def order(self, device: torch.device) -> Tensor:
        """Return the indices of all frames, int64 [t], in the order of the processes, in which they are exchanged."""
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        segments = [
            torch.arange(start, start + length, device=device).split(self.group.sizes(length))
            for start, length in zip(starts, self.lengths, strict=True)
        ]
        return torch.cat([frames for parts in zip(*segments, strict=True) for frames in parts])

    def join(self, part: Tensor, segment: int = 0) -> Tensor:
        """Join the frames of one segment, [b, t of this process, ...] -> [b, t, ...]."""
        joined: Tensor = _Join.apply(part, self.group, self.group.sizes(self.lengths[segment]))
        return joined

    def frames_to_places(self, x: Tensor) -> Tensor:
        """[b, t of this process, n, d] -> [b, t, n of this process, d], frames in the order of ``order``."""
        places = self.group.sizes(x.shape[2])
        if not min(places):
            raise ValueError(
                f"context_parallel={self.group.size} processes cannot divide {x.shape[2]} tokens of a frame"
            )
        return _exchange(x, self.group, _Cut(2, places), _Cut(1, self.counts))

    def places_to_frames(self, y: Tensor, tokens: int) -> Tensor:
        """Undo ``frames_to_places`` for n = ``tokens``."""
        return _exchange(y, self.group, _Cut(1, self.counts), _Cut(2, self.group.sizes(tokens)))


def divide_frames(group: ContextGroup | None, *lengths: int) -> DividedFrames | None:
    """Divide the frames of segments over a group; None without one."""
    return None if group is None else DividedFrames(group, lengths)


def own_frames(x: Tensor, division: DividedFrames | None) -> Tensor:
    """Return this process's frames of a segment [b, t, ...]."""
    return x if division is None else division.group.part(x, 1)


def join_frames(part: Tensor, division: DividedFrames | None, segment: int = 0) -> Tensor:
    """Join the frames of all processes of a segment; see ``DividedFrames.join``."""
    return part if division is None else division.join(part, segment)


class _Cut(NamedTuple):
    """The parts of a dimension that the processes have."""

    dim: int
    sizes: list[int]


def _exchange(x: Tensor, group: ContextGroup, cut: _Cut, joined: _Cut) -> Tensor:
    exchanged: Tensor = _Exchange.apply(x, group, cut, joined)
    return exchanged


class _Exchange(torch.autograd.Function):
    """Send the parts of one dimension to the processes, and join what they send along another one."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: ContextGroup, cut: _Cut, joined: _Cut) -> Tensor:
        context.arguments = (group, joined, cut)
        return _send_and_receive(x, group, cut, joined)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _send_and_receive(gradient, *context.arguments), None, None, None


class _Join(torch.autograd.Function):
    """Join the frames of all processes, in all of them."""

    @staticmethod
    def forward(context: Any, part: Tensor, group: ContextGroup, sizes: list[int]) -> Tensor:
        context.arguments = (group, sizes)
        copies = torch.cat([part] * group.size)  # one for each process
        return _send_and_receive(copies, group, _Cut(0, [len(part)] * group.size), _Cut(1, sizes))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        group, sizes = context.arguments
        copies = [len(gradient)] * group.size
        received = _send_and_receive(gradient, group, _Cut(1, sizes), _Cut(0, copies))
        return received.unflatten(0, (group.size, -1)).sum(0), None, None


class _Sum(torch.autograd.Function):
    """The sum over processes, in all of them."""

    @staticmethod
    def forward(context: Any, part: Tensor, group: ContextGroup) -> Tensor:
        context.group = group
        return _all_reduce(part, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _all_reduce(gradient, context.group), None


def _all_reduce(part: Tensor, group: ContextGroup) -> Tensor:
    total = part.detach().clone()
    group.all_reduce(total)
    return total


def _send_and_receive(x: Tensor, group: ContextGroup, cut: _Cut, joined: _Cut) -> Tensor:
    """See ``_Exchange``."""
    parts = x.split(cut.sizes, cut.dim)
    shapes = []
    for size in joined.sizes:
        shape = list(parts[group.rank].shape)
        shape[joined.dim] = size
        shapes.append(torch.Size(shape))
    sent = torch.cat([part.reshape(-1) for part in parts])
    received = x.new_empty(sum(shape.numel() for shape in shapes))
    counts = [shape.numel() for shape in shapes]
    group.exchange(received, sent, counts, [part.numel() for part in parts])
    parts = received.split(counts)
    return torch.cat([part.view(shape) for part, shape in zip(parts, shapes, strict=True)], dim=joined.dim)
