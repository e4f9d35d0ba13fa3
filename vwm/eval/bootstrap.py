"""Scores of predictions with confidence intervals: a bootstrap over episodes.

Clips of one episode look alike, so episodes are drawn, not clips, and all models are judged on the same draws: the
interval of a difference is then that of the difference itself, and not of two numbers that move together.

Legend: n clips, e episodes, o outputs, r draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE_LEVEL = 0.95


class ConfidenceInterval(NamedTuple):
    """A number, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


class BootstrapScores(NamedTuple):
    """A score of the test clips, and of every draw of episodes from them.

    Attributes:
        value: float64 [o], of all clips.
        drawn: float64 [r, o].
    """

    value: Tensor
    drawn: Tensor

    def mean(self) -> BootstrapScores:
        """The mean over outputs, [1] and [r, 1]."""
        return BootstrapScores(self.value.mean(dim=-1, keepdim=True), self.drawn.mean(dim=-1, keepdim=True))


def bootstrap_episode_counts(episodes: int, draws: int, seed: int) -> Tensor:
    """How often each episode comes in each draw with replacement: float64 [r, e], the first row once each."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(episodes, (draws, episodes), generator=generator)
    counts = torch.zeros(draws, episodes, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(draws, episodes, dtype=torch.float64)
    )
    return torch.cat((torch.ones(1, episodes, dtype=torch.float64), counts))


def bootstrap_r2(truth: Tensor, guess: Tensor, episodes: Tensor, counts: Tensor) -> BootstrapScores:
    """R², 1 - (squared error) / (variance of the draw): float64 [n, o] twice, int64 [n], [r + 1, e] -> [o].

    1 is perfect; the test clips' mean scores 0, and what is worse than that scores below.
    """
    ones = truth.new_ones(len(truth), 1)
    parts = torch.cat(((truth - guess).square(), truth.square(), truth, ones), dim=1)
    summed = counts @ parts.new_zeros(counts.shape[1], parts.shape[1]).index_add_(0, episodes, parts)
    o = truth.shape[1]
    error, squares, total, number = summed.split([o, o, o, 1], dim=1)
    score = 1 - error / (squares - total.square() / number)
    return BootstrapScores(score[0], score[1:])


def bootstrap_accuracy(truth: Tensor, guess: Tensor, episodes: Tensor, counts: Tensor) -> BootstrapScores:
    """Share of the right classes: int64 [n] twice, int64 [n], [r + 1, e] -> [1]."""
    right = torch.stack(((truth == guess).double(), torch.ones(len(truth), dtype=torch.float64)), dim=1)
    summed = counts @ right.new_zeros(counts.shape[1], 2).index_add_(0, episodes, right)
    score = summed[:, :1] / summed[:, 1:]
    return BootstrapScores(score[0], score[1:])


def average_over_seeds(draws: list[BootstrapScores], seed: int) -> BootstrapScores:
    """One score of networks that differ by their seed alone: every draw of episodes draws a network, too."""
    drawn = torch.stack([d.drawn for d in draws])
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(draws), (drawn.shape[1],), generator=generator)
    return BootstrapScores(
        torch.stack([d.value for d in draws]).mean(dim=0), drawn[which, torch.arange(drawn.shape[1])]
    )


def score_difference(a: BootstrapScores, b: BootstrapScores) -> BootstrapScores:
    """Of two scores on the same draws."""
    return BootstrapScores(a.value - b.value, a.drawn - b.drawn)


def percentile_intervals(draws: BootstrapScores) -> list[ConfidenceInterval]:
    """The 95% interval of every output, by percentiles of the draws that have a score (a variance, for R²)."""
    tail = (1 - CONFIDENCE_LEVEL) / 2
    found = []
    for value, drawn in zip(draws.value, draws.drawn.T, strict=True):
        finite = drawn[drawn.isfinite()]
        low, high = (float(finite.quantile(q)) if len(finite) else float("nan") for q in (tail, 1 - tail))
        found.append(ConfidenceInterval(float(value), low, high))
    return found
