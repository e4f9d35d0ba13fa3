"""Who plays while a recording runs: seeded behaviour policies. A new one is one class and a line in ``POLICIES``.

A world model learns what actions do from seeing them held, mixed and broken off; uniform play hardly ever holds one
long enough to get anywhere, hence ``sticky`` and ``mixed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.environments import Actions


class RandomPolicy:
    """Draws every action anew: by weight (discrete) or uniformly from a box (continuous).

    Args:
        actions: what the game takes.
        lanes: number of games played at once.
        rng: source of all chance.
        prefer: weights of discrete actions; those not named have weight 1.

    Raises:
        ValueError: ``prefer`` names an action that does not exist, a weight below 0, or continuous actions.
    """

    def __init__(
        self, actions: Actions, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        self.actions, self.lanes, self.rng = actions, lanes, rng
        self.base = base_weights(actions, prefer or {})
        self.weights = np.tile(self.base, (lanes, 1))
        self.low = np.tile(actions.low, (lanes, 1))
        self.high = np.tile(actions.high, (lanes, 1))

    def act(self, first: NDArray[np.bool_]) -> NDArray[Any]:
        """Choose int64 [lanes] or float32 [lanes, A]; ``first`` [lanes] says where an episode has just begun."""
        if self.actions.count == 0:
            return self.rng.uniform(self.low, self.high).astype(np.float32)
        edges = self.weights.cumsum(axis=1)
        drawn: NDArray[np.int64] = (self.rng.random((self.lanes, 1)) * edges[:, -1:] >= edges).sum(axis=1)
        return drawn


class StickyPolicy(RandomPolicy):
    """Repeats the last action with a probability, else draws anew."""

    def __init__(
        self, actions: Actions, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, lanes, rng, prefer)
        self.repeat = np.full(lanes, 0.8)
        self.last = super().act(np.ones(lanes, bool))

    def act(self, first: NDArray[np.bool_]) -> NDArray[Any]:
        fresh = super().act(first)
        keep = (self.rng.random(self.lanes) < self.repeat) & ~first
        self.last = np.where(keep if fresh.ndim == 1 else keep[:, None], self.last, fresh)
        return self.last


class MixedPolicy(StickyPolicy):
    """Sticky play in pieces of random length, each with its own stickiness and its own leaning.

    A piece draws its action weights from a Dirichlet around the base weights, sparse enough that many pieces do
    little but two or three things; a continuous piece plays within a random part of the box.
    """

    concentration = 0.3
    """Dirichlet parameter of an action of average weight; the smaller, the more one-sided are the pieces."""
    piece_length = (16, 128)
    """Shortest and longest piece, in frames."""

    def __init__(
        self, actions: Actions, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, lanes, rng, prefer)
        self.left = np.zeros(lanes, np.int64)

    def act(self, first: NDArray[np.bool_]) -> NDArray[Any]:
        for lane in np.flatnonzero(first | (self.left == 0)):
            self._begin_piece(int(lane))
        self.left -= 1
        return super().act(first)

    def _begin_piece(self, lane: int) -> None:
        self.left[lane] = self.rng.integers(self.piece_length[0], self.piece_length[1] + 1)
        self.repeat[lane] = self.rng.uniform(0.5, 0.95)
        if self.actions.count:
            drawn = self.rng.standard_gamma(self.base * (self.concentration * np.count_nonzero(self.base)))
            self.weights[lane] = drawn if drawn.sum() > 0 else self.base
        else:
            corners = self.rng.uniform(self.actions.low, self.actions.high, (2, len(self.actions.low)))
            self.low[lane], self.high[lane] = corners.min(axis=0), corners.max(axis=0)


POLICIES: dict[str, type[RandomPolicy]] = {"random": RandomPolicy, "sticky": StickyPolicy, "mixed": MixedPolicy}


def base_weights(actions: Actions, prefer: Mapping[int, float]) -> NDArray[np.float64]:
    """Weights of the discrete actions, float64 [count], summing to 1; empty for continuous actions."""
    if actions.count == 0:
        if prefer:
            raise ValueError(f"prefer {dict(prefer)}: weights are for discrete actions, and these are continuous")
        return np.zeros(0)
    weights: NDArray[np.float64] = np.ones(actions.count)
    for action, weight in prefer.items():
        if not 0 <= action < actions.count or weight < 0:
            raise ValueError(
                f"prefer {{{action}: {weight}}}: actions go from 0 to {actions.count - 1} "
                f"({', '.join(actions.names) or 'unnamed'}), weights are 0 or more"
            )
        weights[action] = weight
    if weights.sum() == 0:
        raise ValueError(f"prefer {dict(prefer)} leaves no action with a weight above 0")
    weights /= weights.sum()
    return weights
