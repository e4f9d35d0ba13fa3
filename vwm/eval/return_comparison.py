"""Comparison of returns of several groups of runs, with intervals.

Episode i has the same seed for every run, so that all are evaluated on the same episodes, and the interval of a
difference is that of paired differences. Runs of a group, which differ by their seeds, are resampled as well,
independently for each group.

Legend: r runs of a group, e episodes, d bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE_PERCENT = 95
"""Percentage of the bootstrap draws inside an interval."""

Floats = NDArray[np.float64]


class MeanWithInterval(NamedTuple):
    """A mean, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ReturnComparison:
    """Result of ``compare_returns``; the keys are the names of the groups.

    Attributes:
        means: mean returns.
        normalized: (return - random) / (reference - random) of every group but these two: 0 is as good as random
            actions, 1 as good as the reference. None where there is no reference, or where the interval of its
            difference from random actions includes 0, so that the ratio is meaningless.
        differences: ``differences[a][b]`` is the mean return of a minus that of b.
    """

    means: Mapping[str, MeanWithInterval]
    normalized: Mapping[str, MeanWithInterval | None]
    differences: Mapping[str, Mapping[str, MeanWithInterval]]


def compare_returns(
    returns: Mapping[str, ArrayLike], random: str, reference: str | None = None, seed: int = 0, draws: int = 10_000
) -> ReturnComparison:
    """Compare returns by a bootstrap over runs and episodes.

    Args:
        returns: returns [r, e] by name of the group; e is the same for all groups, r may differ.
        random: name of the group of random actions.
        reference: name of the group whose return is 1 on the normalized scale, such as agents trained on real steps.
        seed: seed of the bootstrap.
        draws: d, number of bootstrap draws.

    Raises:
        ValueError: a name is unknown, or the numbers of episodes differ.
    """
    table = {name: np.atleast_2d(np.asarray(values, np.float64)) for name, values in returns.items()}
    for name in (random, reference):
        if name is not None and name not in table:
            raise ValueError(f"there is no {name!r} among {', '.join(table)}")
    episodes = {values.shape[1] for values in table.values()}
    if len(episodes) != 1:
        raise ValueError(f"every group must have the same number of episodes, got {sorted(episodes)}")
    generator = np.random.default_rng(seed)
    drawn_episodes = _bootstrap_weights(generator, episodes.pop(), draws)
    drawn = {
        name: np.einsum("dr,re,de->d", _bootstrap_weights(generator, len(values), draws), values, drawn_episodes)
        for name, values in table.items()
    }
    means = {name: float(values.mean()) for name, values in table.items()}
    scores = {name: mean_with_interval(means[name], drawn[name]) for name in table}
    differences = {
        a: {b: mean_with_interval(means[a] - means[b], drawn[a] - drawn[b]) for b in table if b != a} for a in table
    }
    normalized: dict[str, MeanWithInterval | None] = {name: None for name in table if name not in (random, reference)}
    if reference is not None and reference != random and differences[reference][random].low > 0:
        # A few draws may still have the reference below random; their ratios do not affect the percentiles.
        span, spans = means[reference] - means[random], drawn[reference] - drawn[random]
        with np.errstate(divide="ignore", invalid="ignore"):
            for name in normalized:
                ratios = (drawn[name] - drawn[random]) / spans
                normalized[name] = mean_with_interval((means[name] - means[random]) / span, ratios[np.isfinite(ratios)])
    return ReturnComparison(scores, normalized, differences)


def _bootstrap_weights(generator: np.random.Generator, size: int, draws: int) -> Floats:
    """Draw with replacement: the share of each of ``size`` items in each draw, [d, size]."""
    chances = np.full(size, 1 / size)
    return generator.multinomial(size, chances, draws) / size


def mean_with_interval(value: float, drawn: Floats) -> MeanWithInterval:
    """Return a value with the interval of its bootstrap draws [d]; NaN bounds where there are none."""
    if not drawn.size:
        return MeanWithInterval(value, float("nan"), float("nan"))
    tail = (100 - CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return MeanWithInterval(value, float(low), float(high))
