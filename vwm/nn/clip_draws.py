"""Random numbers of a loss, each a function of its clip: any number of processes draws the same for a global batch.

``TrainingModule`` opens ``clip_draws`` around a loss; inside of it, the first dimension of what is drawn is the clips
of the batch. Outside, where a network is used by itself, torch's global generator draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal, seeded_uniform


@dataclass
class _Draws:
    """Where a loss is in its random numbers.

    Attributes:
        clips: int64 [b], a seed for each clip.
        step: a seed of the step, equal in all processes.
        first: position of the first clip in the step's global batch.
        count: how often was drawn.
    """

    clips: Tensor
    step: int
    first: int
    count: int = 0

    def next_seeds(self) -> Tensor:
        self.count += 1
        return fold_in(self.clips, self.count)

    def next_step_seed(self, device: torch.device) -> Tensor:
        self.count += 1
        return fold_in(torch.full((1,), self.step, dtype=torch.int64, device=device), self.count)


_current: ContextVar[_Draws | None] = ContextVar("clip_draws", default=None)


@contextmanager
def clip_draws(clips: Tensor | None, seed: int = 0, step: int = 0, first: int = 0) -> Iterator[None]:
    """Draw random numbers that depend on clips inside the with-statement, from its start.

    Args:
        clips: int64 [b], the seeds of the clips of a batch, on their device; None leaves torch's global generator.
        seed: seed of the training.
        step: the optimizer step.
        first: position of the first clip in the step's global batch.
    """
    draws = None if clips is None else _Draws(fold_in(clips, seed), (seed << 32) + step, first)
    token = _current.set(draws)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def repeated_draws() -> Iterator[None]:
    """Draw what was drawn from the start of ``clip_draws`` on, once more."""
    draws = _current.get()
    token = _current.set(None if draws is None else _Draws(draws.clips, draws.step, draws.first))
    try:
        yield
    finally:
        _current.reset(token)


def draw_uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw numbers in [0, 1), float32 [b, ...]; the first dimension may also be clips and frames, b * t."""
    draws = _current.get()
    if draws is None:
        return torch.rand(tuple(shape), device=device)
    return seeded_uniform(draws.next_seeds(), shape[0] // len(draws.clips), *shape[1:]).reshape(tuple(shape))


def draw_normal_like(x: Tensor) -> Tensor:
    """Draw from the standard normal distribution, shaped like x [b, ...]; see ``draw_uniform``."""
    return torch.randn_like(x) if _current.get() is None else draw_normal(x.shape, x.device).to(x.dtype)


def draw_normal(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw from the standard normal distribution, float32 [b, ...]; see ``draw_uniform``."""
    draws = _current.get()
    if draws is None:
        return torch.randn(tuple(shape), device=device)
    return seeded_normal(draws.next_seeds(), shape[0] // len(draws.clips), *shape[1:]).reshape(tuple(shape))


def draw_integers(high: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw int64 [b, ...] from 0 to ``high - 1``, at most 2^23 of them; see ``draw_uniform``."""
    if _current.get() is None:
        return torch.randint(high, tuple(shape), device=device)
    return (draw_uniform(shape, device) * high).long()


def draw_seeds(batch: int, device: torch.device) -> Tensor:
    """Draw a seed for each clip, int64 [b]."""
    draws = _current.get()
    return torch.randint(2**62, (batch,), device=device) if draws is None else draws.next_seeds()


def draw_for_all_clips(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw numbers in [0, 1), float32, that all clips of a global batch share."""
    draws = _current.get()
    if draws is None:
        return torch.rand(tuple(shape), device=device)
    return seeded_uniform(draws.next_step_seed(device), *shape)[0]


def draw_normal_for_all_clips(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw from the standard normal distribution, float32, what all clips of a global batch share."""
    draws = _current.get()
    if draws is None:
        return torch.randn(tuple(shape), device=device)
    return seeded_normal(draws.next_step_seed(device), *shape)[0]


def draw_share_of_clips(share: float, batch: int) -> list[int]:
    """Draw a share of the clips of a global batch, evenly spread; return the indices of those among this batch.

    Their number is the share of the global batch, randomly rounded, and that of each process differs by at most 1.
    """
    draws = _current.get()
    first = 0 if draws is None else draws.first
    offset = float(draw_for_all_clips((), torch.device("cpu")))
    return [i for i in range(batch) if (offset + (first + i) * share) % 1 < share]
