"""Environments in which an action is held for several decisions, for worlds whose step shows several frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.envs.batched_envs import BatchedEnv, EnvSpec
from vwm.envs.time_step import TimeStep


class HeldActionEnv(BatchedEnv):
    """Copies of an environment of which a step holds its action for k decisions, or to the end of the episode.

    ``TimeStep.observation`` has the observations of all k decisions, [count, k, ...]: at the start of an episode the
    first one k times; where an episode ends earlier, its last one fills the rest. Rewards are summed.

    Args:
        spec: the environment; every copy is opened on its own, because episodes end at different decisions.
        frames: k.
        count: number of copies.
        seed: of all episodes.
        renderable: see ``EnvSpec.open``.
    """

    def __init__(self, spec: EnvSpec, frames: int, count: int, seed: int, renderable: bool = False) -> None:
        check_positive(frames=frames, count=count)
        seeds = [int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) for index in range(count)]
        self.envs = [spec.open(1, s, renderable and index == 0) for index, s in enumerate(seeds)]
        self.spaces = self.envs[0].spaces
        self.count = count
        self.frames_per_step = frames

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        step = _concatenate([self._fill(env.reset(), []) for env in self.envs])
        self.reward = step.reward
        return step

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        step = _concatenate([self._hold(env, a[None]) for env, a in zip(self.envs, action, strict=True)])
        self.reward = step.reward
        return step

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the copies, and the rewards of the last step."""
        return {"envs": [env.state_dict() for env in self.envs], "reward": self.reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``; of the step's observations only the last is restored, k times."""
        steps = [env.load_state_dict(saved) for env, saved in zip(self.envs, state["envs"], strict=True)]
        self.reward = state["reward"]
        return _concatenate([self._fill(step, []) for step in steps])._replace(reward=self.reward)

    def achievements(self) -> list[dict[str, bool]]:
        """See ``BatchedEnv.achievements``."""
        return [env.achievements()[0] for env in self.envs]

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``."""
        return self.envs[0].render()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        for env in self.envs:
            env.close()

    def _hold(self, env: BatchedEnv, action: Tensor) -> TimeStep:
        """Take an action of one copy until k decisions have passed, or an episode has begun or ended."""
        observations: list[Tensor] = []
        reward = torch.zeros(1)
        while True:
            step = env.step(action)
            reward = reward + step.reward
            if step.is_first or step.is_last or len(observations) == self.frames_per_step - 1:
                return self._fill(step, observations)._replace(reward=reward)
            observations.append(step.observation)

    def _fill(self, step: TimeStep, earlier: list[Tensor]) -> TimeStep:
        """Return a time step with k observations: the earlier ones, then that of the time step itself."""
        repeated = [step.observation] * (self.frames_per_step - len(earlier))
        return step._replace(observation=torch.stack((*earlier, *repeated), dim=1))


def _concatenate(steps: list[TimeStep]) -> TimeStep:
    return TimeStep(*(torch.cat(values) for values in zip(*steps, strict=True)))
