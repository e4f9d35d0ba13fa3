"""How well a world ranks policies: their returns in it compared with those in the real environment.

Spearman's and Pearson's correlations and the mean maximum rank violation of SIMPLER (Li et al. 2024, arXiv 2405.05941,
equation 1): for each policy the largest difference of real returns to a policy that the world orders the other way,
averaged over policies. It is 0 where the world's order is the real one.

Legend: p policies, e episodes, d bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vwm.eval.return_comparison import MeanWithInterval, mean_with_interval

Floats = NDArray[np.float64]
MIN_POLICIES = 3
"""Of fewer policies a correlation says nothing."""


@dataclass(frozen=True)
class PolicyRanking:
    """Agreement of the returns of policies in a world with those in the real environment.

    Attributes:
        spearman: rank correlation of mean returns, ties averaged, with its 95% interval over policies and episodes.
        pearson: linear correlation of mean returns, with its interval.
        rank_violation: mean maximum rank violation, in units of the real return, with its interval.
    """

    spearman: MeanWithInterval
    pearson: MeanWithInterval
    rank_violation: MeanWithInterval


def rank_policies(
    real: Sequence[ArrayLike], imagined: Sequence[ArrayLike], seed: int = 0, draws: int = 2000
) -> PolicyRanking:
    """Compare returns by a bootstrap that draws policies, and the episodes of each, both with replacement.

    Resampled episodes add noise, so that a correlation close to 1 lies near the upper bound of its interval, or above.

    Args:
        real: returns [e] of each policy in the real environment.
        imagined: returns [e'] of each in the world; e' may differ from e.
        seed, draws: of the bootstrap. Draws of equal policies alone have no correlation, and are left out.

    Raises:
        ValueError: fewer than three policies, or not as many of both.
    """
    if len(real) != len(imagined) or len(real) < MIN_POLICIES:
        raise ValueError(
            f"a ranking needs {MIN_POLICIES} policies or more, each played in both: got {len(real)} in the real "
            f"environment and {len(imagined)} in the world"
        )
    table = [np.asarray(returns, np.float64) for returns in real]
    other = [np.asarray(returns, np.float64) for returns in imagined]
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(table), size=(draws, len(table)))
    drawn = np.array([_measures(_resample(table, rng)[pick], _resample(other, rng)[pick]) for pick in chosen])
    values = _measures(*(np.array([returns.mean() for returns in part]) for part in (table, other)))
    return PolicyRanking(
        *(mean_with_interval(value, column[np.isfinite(column)]) for value, column in zip(values, drawn.T, strict=True))
    )


def rank_violation(real: Floats, imagined: Floats) -> float:
    """Compute the mean maximum rank violation of mean returns [p]."""
    apart = np.abs(real[:, None] - real)
    violated = (imagined[:, None] < imagined) != (real[:, None] < real)
    return float((apart * violated).max(axis=1).mean())


def average_ranks(values: Floats) -> Floats:
    """Return the ranks of values [p], from 0; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _resample(returns: Sequence[Floats], rng: np.random.Generator) -> Floats:
    """Draw the episodes of each policy with replacement, and average them: [p]."""
    return np.array([rng.choice(each, len(each)).mean() for each in returns])


def _measures(real: Floats, imagined: Floats) -> tuple[float, float, float]:
    """Return Spearman's and Pearson's correlation, NaN where all values of one are equal, and the rank violation."""
    return (
        _correlation(average_ranks(real), average_ranks(imagined)),
        _correlation(real, imagined),
        rank_violation(real, imagined),
    )


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else float("nan")
