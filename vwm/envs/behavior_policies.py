"""Seeded policies that act while recording. A new one is one class and a line in ``BEHAVIOR_POLICIES``.

A world model learns the effects of actions from data in which they are held, mixed and interrupted. Uniform random
actions rarely hold one long enough to reach new states, which is why ``sticky`` and ``mixed`` exist.

Continuous actions lie in [-1, 1], as in shards. Composite actions are drawn in the flat space that stands for them
(``ActionSpace.from_flat``), so that keys are held, choices made and pointers moved independently of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.ball_tracking import paddle_direction
from vwm.envs.block_tracking import AGENT_COLOR, BLOCK_COLOR, find_color
from vwm.envs.lane_following import lane_following_action


class RandomPolicy:
    """Draws every action independently.

    Discrete ones are drawn by weight, continuous ones uniformly from [-1, 1], and each part of composite ones
    uniformly.

    Args:
        actions: the actions of the environment.
        num_envs: number of environments that step together.
        rng: source of all randomness.
        prefer: weights of discrete actions; those not named have weight 1.

    Raises:
        ValueError: ``prefer`` names an action that does not exist, a weight below 0, or continuous actions.
    """

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        self.actions = actions
        self.num_envs = num_envs
        self.rng = rng
        self.base_weights = base_action_weights(actions, prefer or {})
        self.weights = np.tile(self.base_weights, (num_envs, 1))
        self.low = np.full((num_envs, len(actions.low)), -1.0)
        self.high = -self.low

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Choose the action of every environment.

        Args:
            first: bool [num_envs], where an episode has just started.
            frames: uint8 [num_envs, H, W, 3], the current observations.

        Returns:
            int64 [num_envs], or float32 [num_envs, A], in [-1, 1] or of composite actions.
        """
        if self.actions.count == 0:
            flat = self.rng.uniform(self.low, self.high).astype(np.float32)
            return self.actions.space.from_flat(torch.from_numpy(flat)).numpy()
        edges = self.weights.cumsum(axis=1)
        actions: NDArray[np.int64] = (self.rng.random((self.num_envs, 1)) * edges[:, -1:] >= edges).sum(axis=1)
        return actions


class StickyPolicy(RandomPolicy):
    """Repeats the last action with a probability, else draws a new one; each column of composite actions by itself."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, num_envs, rng, prefer)
        self.repeat_probability = np.full(num_envs, 0.8)
        self.last_action = super().act(np.ones(num_envs, bool), np.zeros((num_envs, 1, 1, 3), np.uint8))

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        new_action = super().act(first, frames)
        repeat = self.repeat_probability
        if new_action.ndim == 2:
            repeat, first = repeat[:, None], first[:, None]
        shape = new_action.shape if self.actions.composite is not None else repeat.shape
        keep = (self.rng.random(shape) < repeat) & ~first
        self.last_action = np.where(keep, self.last_action, new_action)
        return self.last_action


class MixedPolicy(StickyPolicy):
    """Sticky play in segments of random length, each with its own stickiness and action weights.

    A segment draws its action weights from a Dirichlet distribution around the base weights, sparse enough that many
    segments use only two or three actions; with continuous and composite actions, it draws from a random part of the
    box, where some keys are never held and some always.
    """

    concentration = 0.3
    """Dirichlet parameter of an action of average weight; the smaller, the fewer actions a segment uses."""
    segment_length = (16, 128)
    """Shortest and longest segment, in frames."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, num_envs, rng, prefer)
        self.frames_left = np.zeros(num_envs, np.int64)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        for env in np.flatnonzero(first | (self.frames_left == 0)):
            self._start_segment(int(env))
        self.frames_left -= 1
        return super().act(first, frames)

    def _start_segment(self, env: int) -> None:
        self.frames_left[env] = self.rng.integers(self.segment_length[0], self.segment_length[1] + 1)
        self.repeat_probability[env] = self.rng.uniform(0.5, 0.95)
        if self.actions.count:
            weights = self.rng.standard_gamma(
                self.base_weights * (self.concentration * np.count_nonzero(self.base_weights))
            )
            self.weights[env] = weights if weights.sum() > 0 else self.base_weights
        else:
            corners = self.rng.uniform(-1, 1, (2, len(self.actions.low)))
            self.low[env], self.high[env] = corners.min(axis=0), corners.max(axis=0)


@dataclass
class _DrivingSegment:
    """What the wheel or the pedals do for some frames.

    Attributes:
        frames_left: frames until it ends.
        override: steer [1], or gas and brake [2], held regardless of the road; None follows the road.
        parameter: of following the road: noise scale of the wheel, or target speed of the pedals.
    """

    frames_left: int = 0
    override: NDArray[np.float64] | None = None
    parameter: float = 0.0


class LaneFollowingPolicy(RandomPolicy):
    """Drives CarRacing: follows the visible road, and leaves it on purpose.

    Wheel and pedals alternate, independently of each other, between segments that follow the road and segments that
    override it: a random turn of the wheel; gas, brake, both or neither. While following, the wheel is noisy and the
    target speed is drawn again every few seconds (sometimes 0). The recording thus shows the effect of each of the
    three controls independently of the others and of the road.

    Raises:
        ValueError: the actions are not steer, gas and brake.
    """

    override_rate = 0.4
    """Fraction of segments that ignore the road; they are shorter than the others."""
    override_length, driving_length = (2, 8), (6, 36)
    """Shortest and longest segment, in frames."""
    pedal_press_rates = (0.6, 0.35)
    """Fractions of the overriding segments of the pedals that press gas, and brake."""
    target_speed_range = (15.0, 65.0)
    """Slowest and fastest target speed, in the environment's unit."""
    stop_rate = 0.05
    """Fraction of the driving segments that brake to a stop."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, num_envs, rng, prefer)
        if actions.names != ("steer", "gas", "brake"):
            named = ", ".join(actions.names) or "unnamed actions"
            raise ValueError(
                f"policy road drives a car by steer, gas, brake (CarRacing-v3); this environment takes {named}"
            )
        self.segments = [(_DrivingSegment(), _DrivingSegment()) for _ in range(num_envs)]
        self.steering_noise = np.zeros(num_envs)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        return np.stack([self._drive(env, frames[env]) for env in range(self.num_envs)])

    def _drive(self, env: int, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Choose the action of one environment, float32 [3]."""
        wheel, pedals = self.segments[env]
        for segment, controls in ((wheel, 1), (pedals, 2)):
            if segment.frames_left == 0:
                self._start_segment(segment, controls)
            segment.frames_left -= 1
        self.steering_noise[env] = 0.8 * self.steering_noise[env] + 0.6 * wheel.parameter * self.rng.normal()
        action = lane_following_action(frame, pedals.parameter) + [self.steering_noise[env], 0, 0]
        if wheel.override is not None:
            action[:1] = wheel.override
        if pedals.override is not None:
            action[1:] = pedals.override
        # gas and brake go from 0 to 1
        return np.array([action[0], 2 * action[1] - 1, 2 * action[2] - 1], np.float32).clip(-1, 1)

    def _start_segment(self, segment: _DrivingSegment, controls: int) -> None:
        """Start a segment of the wheel (1 control) or of the pedals (2)."""
        if self.rng.random() < self.override_rate:
            segment.frames_left = int(self.rng.integers(*self.override_length, endpoint=True))
            pedals = self.rng.random(2) * (self.rng.random(2) < self.pedal_press_rates)
            segment.override = pedals if controls == 2 else self.rng.uniform(-1, 1, 1)
            return
        segment.frames_left = int(self.rng.integers(*self.driving_length, endpoint=True))
        segment.override = None
        if controls == 1:
            segment.parameter = self.rng.uniform(0, 0.3)
        else:
            segment.parameter = (
                0.0 if self.rng.random() < self.stop_rate else self.rng.uniform(*self.target_speed_range)
            )


class HeldKeysPolicy(LaneFollowingPolicy):
    """Drives CarRacing as people do with a keyboard: holds the same keys for seconds, then drives back to the road.

    Half of the segments hold a combination of keys regardless of the road: nothing, gas or half gas, straight or with
    full steering, the brake, or weaving with gas; a third of these keep straight on for twelve seconds. The others
    follow the road as ``LaneFollowingPolicy`` does, which also brings the car back to it. The recording thus shows
    states that careful driving avoids: standing still for long, full speed, spinning, the grass away from the road,
    the return, and the edge of the field, where the game ends.
    """

    hold_rate = 0.5
    """Fraction of the segments that hold keys."""
    mean_hold_length, longest_hold = 35.0, 150
    """Length of such a segment, in frames: exponentially distributed."""
    straight_hold_rate = 0.3
    """Fraction of these segments that have the longest length and do not steer: under half gas the car then often
    leaves the field."""
    driving_segment_length = (12, 60)
    """Shortest and longest segment that follows the road, in frames."""
    held_keys = (
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.5, 0.0),
        (-1.0, 1.0, 0.0),
        (1.0, 1.0, 0.0),
        (-1.0, 0.5, 0.0),
        (1.0, 0.5, 0.0),
        (-1.0, 0.0, 0.0),
        (1.0, 0.0, 0.0),
        (0.0, 0.0, 1.0),
    )
    """Steering, gas and brake of the combinations; one more weaves: it turns the wheel over every few frames."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        super().__init__(actions, num_envs, rng, prefer)
        self.frames_left = np.zeros(num_envs, np.int64)
        self.held: list[NDArray[np.float32] | None] = [None] * num_envs
        self.weave_period = np.zeros(num_envs, np.int64)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        self.frames_left[first] = 0
        return super().act(first, frames)

    def _drive(self, env: int, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Choose the action of one environment, float32 [3]."""
        if self.frames_left[env] == 0:
            self._choose_keys(env)
        self.frames_left[env] -= 1
        keys = self.held[env]
        if keys is None:
            return super()._drive(env, frame)
        if self.weave_period[env] and self.frames_left[env] % self.weave_period[env] == 0:
            keys[0] = -keys[0]
        return keys.copy()

    def _choose_keys(self, env: int) -> None:
        if self.rng.random() >= self.hold_rate:
            self.held[env] = None
            self.frames_left[env] = self.rng.integers(*self.driving_segment_length, endpoint=True)
            return
        self.frames_left[env] = 1 + min(self.longest_hold, int(self.rng.exponential(self.mean_hold_length)))
        self.weave_period[env] = 0
        choice = int(self.rng.integers(len(self.held_keys) + 1))
        if self.rng.random() < self.straight_hold_rate:
            self.frames_left[env] = self.longest_hold
            straight = [i for i, (steer, _, _) in enumerate(self.held_keys) if steer == 0]
            choice = straight[int(self.rng.integers(len(straight)))]
        if choice == len(self.held_keys):
            self.weave_period[env] = self.rng.integers(4, 13)
            steer, gas, brake = self.rng.choice([-1.0, 1.0]), self.rng.uniform(0.3, 1), 0.0
        else:
            steer, gas, brake = self.held_keys[choice]
        self.held[env] = np.array([steer, 2 * gas - 1, 2 * brake - 1], np.float32)


class BallTrackingPolicy(MixedPolicy):
    """Plays Pong: follows the ball in some segments, and plays at random, as ``MixedPolicy`` does, in the others.

    Each segment that follows the ball meets it with another point of the paddle, so that it flies in every direction.
    The recording thus has long rallies, points for both sides, and the paddle everywhere.

    Raises:
        ValueError: the actions are not those of Pong.
    """

    tracking_rate = 0.8
    """Fraction of the segments that follow the ball."""
    largest_offset = 0.04
    """Distance from the middle of the paddle to the point that meets the ball, as a fraction of the height."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        names = [name.upper() for name in actions.names]
        if not {"NOOP", "LEFT", "RIGHT"} <= set(names):
            named = ", ".join(actions.names) or "unnamed actions"
            raise ValueError(
                f"policy ball moves a paddle by NOOP, RIGHT, LEFT (ALE/Pong-v5); this environment takes {named}"
            )
        self.moves = {0: names.index("NOOP"), -1: names.index("RIGHT"), 1: names.index("LEFT")}
        self.tracks = np.zeros(num_envs, bool)
        self.offset = np.zeros(num_envs)
        super().__init__(actions, num_envs, rng, prefer)

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        actions = super().act(first, frames).copy()
        for env in np.flatnonzero(self.tracks):
            actions[env] = self.moves[paddle_direction(frames[env], self.offset[env])]
        self.last_action = actions
        return actions

    def _start_segment(self, env: int) -> None:
        super()._start_segment(env)
        self.tracks[env] = self.rng.random() < self.tracking_rate
        self.offset[env] = self.rng.uniform(-self.largest_offset, self.largest_offset)


class BlockPushingPolicy(RandomPolicy):
    """Moves the disc of Push-T between random points around the block, which its straight ways often push.

    Where disc or block are not seen, actions are random.

    Raises:
        ValueError: the actions are not two continuous ones.
    """

    reach = 0.4
    """Distance for which an action of 1 is held, as a fraction of the image: about that of five steps."""
    spread = 0.2
    """Largest distance of a point from the block in x and in y, as a fraction of the image."""
    change_probability = 0.5
    """Of another point, at every action."""

    def __init__(
        self, actions: EnvActionSpec, num_envs: int, rng: np.random.Generator, prefer: Mapping[int, float] | None = None
    ) -> None:
        if actions.count or actions.composite is not None or len(actions.low) != 2:
            raise ValueError("policy push moves the disc of vwm/PushT-v0 by two continuous actions, which are not here")
        super().__init__(actions, num_envs, rng, prefer)
        self.points = np.zeros((num_envs, 2))

    def act(self, first: NDArray[np.bool_], frames: NDArray[np.uint8]) -> NDArray[Any]:
        actions = super().act(first, frames)
        changed = first | (self.rng.random(self.num_envs) < self.change_probability)
        drawn = self.rng.uniform(-self.spread, self.spread, (self.num_envs, 2))
        self.points = np.where(changed[:, None], drawn, self.points)
        for env, frame in enumerate(frames):
            agent, block = find_color(frame, AGENT_COLOR), find_color(frame, BLOCK_COLOR)
            if agent is not None and block is not None:
                target = np.clip(block + self.points[env], 0.1, 0.9)
                actions[env] = np.clip((target - agent) / self.reach, -1, 1)
        return actions


BEHAVIOR_POLICIES: dict[str, type[RandomPolicy]] = {
    "random": RandomPolicy,
    "sticky": StickyPolicy,
    "mixed": MixedPolicy,
    "road": LaneFollowingPolicy,
    "keys": HeldKeysPolicy,
    "ball": BallTrackingPolicy,
    "push": BlockPushingPolicy,
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
