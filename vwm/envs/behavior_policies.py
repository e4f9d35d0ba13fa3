"""Seeded policies that act while recording. A new one is one class and a line in ``BEHAVIOR_POLICIES``.

A world model learns the effects of actions from data in which they are held, mixed and interrupted. Uniform random
actions rarely hold one long enough to get anywhere, which is why ``sticky`` and ``mixed`` exist.

Continuous actions lie in [-1, 1], as in shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.lane_following import lane_following_action


class RandomPolicy:
    """Draws every action independently: by weight (discrete) or uniformly from [-1, 1] (continuous).

    Args:
        actions: the actions of the environment.
        lanes: number of environments that are played together.
        rng: source of all randomness.
        prefer: weights of discrete actions; those not named have weight 1.

    Raises:
        ValueError: ``prefer`` names an action that does not exist, a weight below 0, or continuous actions.
    """

    def __init__(
        self, actions: EnvActionSpec, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        self.actions, self.lanes, self.rng = actions, lanes, rng
        self.base = base_action_weights(actions, prefer or {})
        self.weights = np.tile(self.base, (lanes, 1))
        self.low = np.full((lanes, len(actions.low)), -1.0)
        self.high = -self.low

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Choose the action of every environment.

        Args:
            first: bool [lanes], where an episode has just begun.
            frames: uint8 [lanes, H, W, 3], the current observations.

        Returns:
            int64 [lanes], or float32 [lanes, A] in [-1, 1].
        """
        if self.actions.count == 0:
            return self.rng.uniform(self.low, self.high).astype(np.float32)
        edges = self.weights.cumsum(axis=1)
        drawn: NDArray[np.int64] = (self.rng.random((self.lanes, 1)) * edges[:, -1:] >= edges).sum(axis=1)
        return drawn


class StickyPolicy(RandomPolicy):
    """Repeats the last action with a probability, else draws a new one."""

    def __init__(
        self, actions: EnvActionSpec, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, lanes, rng, prefer)
        self.repeat = np.full(lanes, 0.8)
        self.last = super().act(np.ones(lanes, bool), np.zeros((lanes, 1, 1, 3), np.uint8))

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        fresh = super().act(first, frames)
        keep = (self.rng.random(self.lanes) < self.repeat) & ~first
        self.last = np.where(keep if fresh.ndim == 1 else keep[:, None], self.last, fresh)
        return self.last


class MixedPolicy(StickyPolicy):
    """Sticky play in segments of random length, each with its own stickiness and action weights.

    A segment draws its action weights from a Dirichlet distribution around the base weights, sparse enough that many
    segments use only two or three actions; with continuous actions, it draws from a random part of the box.
    """

    concentration = 0.3
    """Dirichlet parameter of an action of average weight; the smaller, the more one-sided the segments."""
    segment_length = (16, 128)
    """Shortest and longest segment, in frames."""

    def __init__(
        self, actions: EnvActionSpec, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, lanes, rng, prefer)
        self.left = np.zeros(lanes, np.int64)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        for lane in np.flatnonzero(first | (self.left == 0)):
            self._start_segment(int(lane))
        self.left -= 1
        return super().act(first, frames)

    def _start_segment(self, lane: int) -> None:
        self.left[lane] = self.rng.integers(self.segment_length[0], self.segment_length[1] + 1)
        self.repeat[lane] = self.rng.uniform(0.5, 0.95)
        if self.actions.count:
            drawn = self.rng.standard_gamma(self.base * (self.concentration * np.count_nonzero(self.base)))
            self.weights[lane] = drawn if drawn.sum() > 0 else self.base
        else:
            corners = self.rng.uniform(-1, 1, (2, len(self.actions.low)))
            self.low[lane], self.high[lane] = corners.min(axis=0), corners.max(axis=0)


@dataclass
class _DrivingSegment:
    """What the wheel or the pedals do for some frames.

    Attributes:
        left: frames until it ends.
        whim: steer [1], or gas and brake [2], held regardless of the road; None follows the road.
        mood: of the driving: how much the wheel sways, or which speed the pedals keep.
    """

    left: int = 0
    whim: NDArray[np.float64] | None = None
    mood: float = 0.0


class LaneFollowingPolicy(RandomPolicy):
    """Drives CarRacing: follows the visible road, and leaves it on purpose.

    Wheel and pedals alternate, each in its own time, between driving and whims: a random turn of the wheel; gas,
    brake, both or none of them. Driving sways about its line, and keeps a speed that is drawn again every few seconds
    (now and then 0). So a world model sees what each of the three does apart from the others and from the road.

    Raises:
        ValueError: the actions are not steer, gas and brake.
    """

    whims = 0.4
    """Fraction of segments that ignore the road; they are shorter than the others."""
    override_length, driving_length = (2, 8), (6, 36)
    """Shortest and longest segment, in frames."""
    pressed = (0.6, 0.35)
    """Fractions of the pedals' ignoring segments that press gas, and brake."""
    pace = (15.0, 65.0)
    """Slowest and fastest target speed, in the environment's unit."""
    stops = 0.05
    """Fraction of the driving segments that brake to a stop."""

    def __init__(
        self, actions: EnvActionSpec, lanes: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, lanes, rng, prefer)
        if actions.names != ("steer", "gas", "brake"):
            named = ", ".join(actions.names) or "unnamed actions"
            raise ValueError(f"policy road drives a car by steer, gas, brake (CarRacing-v3); this game takes {named}")
        self.pieces = [(_DrivingSegment(), _DrivingSegment()) for _ in range(lanes)]
        self.sway = np.zeros(lanes)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        return np.stack([self._drive(lane, frames[lane]) for lane in range(self.lanes)])

    def _drive(self, lane: int, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Choose the action of one environment, float32 [3]."""
        wheel, pedals = self.pieces[lane]
        for piece, held in ((wheel, 1), (pedals, 2)):
            if piece.left == 0:
                self._begin(piece, held)
            piece.left -= 1
        self.sway[lane] = 0.8 * self.sway[lane] + 0.6 * wheel.mood * self.rng.normal()
        action = lane_following_action(frame, pedals.mood) + [self.sway[lane], 0, 0]
        if wheel.whim is not None:
            action[:1] = wheel.whim
        if pedals.whim is not None:
            action[1:] = pedals.whim
        # gas and brake go from 0 to 1
        return np.array([action[0], 2 * action[1] - 1, 2 * action[2] - 1], np.float32).clip(-1, 1)

    def _begin(self, piece: _DrivingSegment, held: int) -> None:
        """Begin a segment of the wheel (``held`` 1) or of the pedals (2)."""
        if self.rng.random() < self.whims:
            piece.left = int(self.rng.integers(*self.override_length, endpoint=True))
            pedals = self.rng.random(2) * (self.rng.random(2) < self.pressed)
            piece.whim = pedals if held == 2 else self.rng.uniform(-1, 1, 1)
            return
        piece.left, piece.whim = int(self.rng.integers(*self.driving_length, endpoint=True)), None
        if held == 1:
            piece.mood = self.rng.uniform(0, 0.3)
        else:
            piece.mood = 0.0 if self.rng.random() < self.stops else self.rng.uniform(*self.pace)


BEHAVIOR_POLICIES: dict[str, type[RandomPolicy]] = {
    "random": RandomPolicy,
    "sticky": StickyPolicy,
    "mixed": MixedPolicy,
    "road": LaneFollowingPolicy,
}


def base_action_weights(actions: EnvActionSpec, prefer: Mapping[int, float]) -> NDArray[np.float64]:
    """Return the weights of the discrete actions, float64 [count], summing to 1; empty for continuous actions."""
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
