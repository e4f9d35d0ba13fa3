"""Statistics that LeRobot keeps of every feature of an episode, and of the whole data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED_FRAMES = 32
"""Frames of an episode that its statistics of pictures are taken from."""
SAMPLED_SIDE = 96
"""Pictures of more pixels a side are thinned out to at most this many for statistics."""

FeatureStatistics = dict[str, NDArray[Any]]
"""``min``, ``max``, ``mean``, ``std`` and quantiles of one shape, and ``count`` [1]."""


def describe_numbers(values: NDArray[Any]) -> FeatureStatistics:
    """Return the statistics of a feature, [T] or [T, D]; each has shape [D]."""
    return _describe(values.reshape(len(values), -1), len(values))


def describe_pictures(pictures: Sequence[NDArray[np.uint8]]) -> FeatureStatistics:
    """Return the statistics of the channels of pictures [H, W, 3], in [0, 1]; each has shape [3, 1, 1]."""
    found = _describe(np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255, len(pictures))
    return {name: value if name == "count" else value.reshape(3, 1, 1) for name, value in found.items()}


def thin_out(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture [H, W, 3] with fewer rows and columns, for statistics."""
    rows, columns = (-(-side // SAMPLED_SIDE) for side in picture.shape[:2])
    return picture[::rows, ::columns].copy()


def join_statistics(parts: Sequence[Mapping[str, Any]]) -> FeatureStatistics:
    """Return the statistics of all data of which these are parts, one or more.

    Quantiles are means of those of the parts, weighted by their counts: an approximation, which LeRobot makes, too.
    """
    arrays = [{name: np.array(value, np.float64) for name, value in part.items()} for part in parts]
    count = np.array([part["count"][0] for part in arrays])
    weights = (count / count.sum()).reshape(-1, *[1] * arrays[0]["mean"].ndim)
    stacked = {name: np.stack([part[name] for part in arrays]) for name in arrays[0]}
    mean = (weights * stacked["mean"]).sum(0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
    joined = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    joined |= {name: (weights * stacked[name]).sum(0) for name in QUANTILES}
    return joined | {"count": count.sum(keepdims=True).astype(np.int64)}


def _describe(values: NDArray[Any], count: int) -> FeatureStatistics:
    numbers = values.astype(np.float64)
    found = {"min": numbers.min(0), "max": numbers.max(0), "mean": numbers.mean(0), "std": numbers.std(0)}
    found |= dict(zip(QUANTILES, np.quantile(numbers, list(QUANTILES.values()), axis=0), strict=True))
    return found | {"count": np.array([count])}
