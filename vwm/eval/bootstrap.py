"""Scores of predictions with confidence intervals: a bootstrap over episodes.

Clips of one episode are similar, so episodes are drawn, not clips. All models are scored on the same draws, which gives
the interval of a difference directly, with the correlation of the two scores.

Legend: n clips, e episodes, o outputs, r draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE_LEVEL = 0.95


class ConfidenceInterval(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


class BootstrapScores(NamedTuple):
    """A score of the test clips, and of every bootstrap draw of their episodes.

    Attributes:
        value: float64 [o], of all clips.
        resampled: float64 [r, o], of each draw.
    """

    value: Tensor
    resampled: Tensor

    def mean(self) -> BootstrapScores:
        """Average over outputs: [1] and [r, 1]."""
        return BootstrapScores(self.value.mean(dim=-1, keepdim=True), self.resampled.mean(dim=-1, keepdim=True))


def bootstrap_episode_counts(episodes: int, draws: int, seed: int) -> Tensor:
    """Draw episodes with replacement; return how often each is drawn, float64 [r + 1, e]; the first row is all ones."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(episodes, (draws, episodes), generator=generator)
    counts = torch.zeros(draws, episodes, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(draws, episodes, dtype=torch.float64)
    )
    return torch.cat((torch.ones(1, episodes, dtype=torch.float64), counts))


def bootstrap_r2(truth: Tensor, prediction: Tensor, episodes: Tensor, counts: Tensor) -> BootstrapScores:
    """Compute R², 1 - (squared error) / (variance of the draw): float64 [n, o] each, int64 [n], [r + 1, e] -> [o].

    1 is perfect; the mean of the test clips scores 0, and worse predictions score below 0.
    """
    ones = truth.new_ones(len(truth), 1)
    parts = torch.cat(((truth - prediction).square(), truth.square(), truth, ones), dim=1)
    summed = counts @ parts.new_zeros(counts.shape[1], parts.shape[1]).index_add_(0, episodes, parts)
    o = truth.shape[1]
    error, squares, total, number = summed.split([o, o, o, 1], dim=1)
    score = 1 - error / (squares - total.square() / number)
    return BootstrapScores(score[0], score[1:])


def bootstrap_accuracy(truth: Tensor, prediction: Tensor, episodes: Tensor, counts: Tensor) -> BootstrapScores:
    """Compute the share of correct classes: int64 [n] each, int64 [n], [r + 1, e] -> [1]."""
    correct = torch.stack(((truth == prediction).double(), torch.ones(len(truth), dtype=torch.float64)), dim=1)
    summed = counts @ correct.new_zeros(counts.shape[1], 2).index_add_(0, episodes, correct)
    score = summed[:, :1] / summed[:, 1:]
    return BootstrapScores(score[0], score[1:])


def average_over_seeds(draws: list[BootstrapScores], seed: int) -> BootstrapScores:
    """Average the scores of networks that differ by their seed only; each bootstrap draw also draws a network."""
    drawn = torch.stack([d.resampled for d in draws])
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(draws), (drawn.shape[1],), generator=generator)
    return BootstrapScores(
        torch.stack([d.value for d in draws]).mean(dim=0), drawn[which, torch.arange(drawn.shape[1])]
    )


def score_difference(a: BootstrapScores, b: BootstrapScores) -> BootstrapScores:
    """Subtract scores on the same draws: a - b."""
    return BootstrapScores(a.value - b.value, a.resampled - b.resampled)


def percentile_intervals(draws: BootstrapScores) -> list[ConfidenceInterval]:
    """Compute the 95% interval of every output, by percentiles of the draws with a finite score."""
    tail = (1 - CONFIDENCE_LEVEL) / 2
    found = []
    for value, drawn in zip(draws.value, draws.resampled.T, strict=True):
        finite = drawn[drawn.isfinite()]
        low, high = (float(finite.quantile(q)) if len(finite) else float("nan") for q in (tail, 1 - tail))
        found.append(ConfidenceInterval(float(value), low, high))
    return found
