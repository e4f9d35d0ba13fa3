"""Returns of several ways of coming to a policy, beside one another, with intervals.

Episode i has the same seed whoever plays, so that all are judged on the same draws of episodes: a policy that met easy
ones met the same easy ones as the others, and the interval of a difference is that of the difference itself. Runs of a
way that differ by their seed are drawn too, each way's for itself.

Legend: r runs of a way, e episodes, d draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 95
"""Per cent of the draws that an interval holds."""

Floats = NDArray[np.float64]


class Score(NamedTuple):
    """A number, and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found; the keys are the ways' names.

    Attributes:
        means: of the returns.
        normalised: (return - random) / (real - random) of every way but these two: 0 plays like random, 1 like the
            agent that was trained on real steps. None where there is no such agent, or where it is not surely better
            than random, so that the ratio says nothing.
        differences: ``differences[a][b]`` is a's mean return less b's.
    """

    means: Mapping[str, Score]
    normalised: Mapping[str, Score | None]
    differences: Mapping[str, Mapping[str, Score]]


def compare(
    returns: Mapping[str, ArrayLike], random: str, real: str | None = None, seed: int = 0, draws: int = 10_000
) -> Comparison:
    """Set returns beside one another, by a bootstrap over runs and episodes.

    Args:
        returns: by the way's name, [r, e]; e is the same for all, r need not be.
        random: name of the random actions among them.
        real: name of the agent that was trained on real steps.
        seed: of the draws.
        draws: d.

    Raises:
        ValueError: a name is unknown, or the numbers of episodes differ.
    """
    table = {name: np.atleast_2d(np.asarray(values, np.float64)) for name, values in returns.items()}
    for name in (random, real):
        if name is not None and name not in table:
            raise ValueError(f"there is no {name!r} among {', '.join(table)}")
    episodes = {values.shape[1] for values in table.values()}
    if len(episodes) != 1:
        raise ValueError(f"every way must have played equally many episodes, got {sorted(episodes)}")
    generator = np.random.default_rng(seed)
    drawn_episodes = _shares(generator, episodes.pop(), draws)
    drawn = {
        name: np.einsum("dr,re,de->d", _shares(generator, len(values), draws), values, drawn_episodes)
        for name, values in table.items()
    }
    means = {name: float(values.mean()) for name, values in table.items()}
    scores = {name: _score(means[name], drawn[name]) for name in table}
    differences = {a: {b: _score(means[a] - means[b], drawn[a] - drawn[b]) for b in table if b != a} for a in table}
    normalised: dict[str, Score | None] = {name: None for name in table if name not in (random, real)}
    if real is not None and real != random and differences[real][random].low > 0:
        # A draw or two of ten thousand may still have real below random; the percentiles do not feel their ratios.
        span, spans = means[real] - means[random], drawn[real] - drawn[random]
        with np.errstate(divide="ignore", invalid="ignore"):
            for name in normalised:
                ratios = (drawn[name] - drawn[random]) / spans
                normalised[name] = _score((means[name] - means[random]) / span, ratios[np.isfinite(ratios)])
    return Comparison(scores, normalised, differences)


def _shares(generator: np.random.Generator, size: int, draws: int) -> Floats:
    """Of each draw with replacement, the share of each of ``size`` things: [d, size]."""
    chances = np.full(size, 1 / size)
    return generator.multinomial(size, chances, draws) / size


def _score(value: float, drawn: Floats) -> Score:
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Score(value, float(low), float(high))
