"""Drives in the real game: carefully along the road, and then by given actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from vwm.envs.behavior_policies import LaneFollowingPolicy
from vwm.envs.wrapped_env import WrappedEnv

Frames = NDArray[np.uint8]


def start_drive(seed: int, rng: np.random.Generator) -> tuple[WrappedEnv, Iterator[Frames]]:
    """Return a new game, and the frames uint8 [64, 64, 3] after each action of careful driving in it.

    Args:
        seed: of the track.
        rng: random numbers of the driver.
    """
    env = WrappedEnv("CarRacing-v3", {"max_episode_steps": 6000}, 64, action_repeat=4)
    policy = LaneFollowingPolicy(env.actions, 1, rng)
    env.reset(seed=seed)

    def drive() -> Iterator[Frames]:
        frame = env.observe()
        while True:
            env.step(policy.act(np.zeros(1, bool), frame[None])[0])
            frame = env.observe()
            yield frame

    return env, drive()


def take_actions(env: WrappedEnv, actions: Iterable[NDArray[np.float32]]) -> Iterator[Frames]:
    """Yield the frame after each action, until the game ends."""
    for action in actions:
        outcome = env.step(action)
        if outcome.terminated or outcome.truncated:
            return
        yield env.observe()
