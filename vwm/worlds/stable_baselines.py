"""Stable-Baselines3's face of a Gymnasium ``VectorEnv``.

Stable-Baselines3 accepts only vector environments of its own classes, which step single environments one by
one. This adapter passes it a ``VectorEnv``, which steps all worlds as one batch:

    envs = SimulatorVectorEnv(simulator, 16, max_episode_steps=100, autoreset_mode="SameStep")
    PPO("CnnPolicy", StableBaselinesVecEnv(envs)).learn(100_000)

A single ``SimulatorEnv`` needs no adapter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Dict
from gymnasium.vector import AutoresetMode, VectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Stable-Baselines3 is not installed ({error}): pip install -e '.[sb3]' in the clone"
    ) from error

from vwm.worlds.vector_infos import select_env_info


class StableBaselinesVecEnv(VecEnv):
    """Behaves as a ``DummyVecEnv`` of the same number of single environments.

    Args:
        envs: in autoreset mode ``SAME_STEP``, which is Stable-Baselines3's.
        sign_rewards: return only the signs of rewards, as is usual on Atari (arXiv 1312.5602); the infos then hold
            the rewards themselves under ``reward``.

    Raises:
        ValueError: the environments are in another mode, or their actions are a ``Dict``.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], sign_rewards: bool = False) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode={mode}: Stable-Baselines3 begins the next episode in the same step; make "
                "the environments with autoreset_mode='SameStep'"
            )
        if isinstance(envs.single_action_space, Dict):
            raise ValueError("Stable-Baselines3 takes no Dict of actions: make the environments with flat_actions=True")
        self.envs = envs
        self.sign_rewards = sign_rewards
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Begin all worlds, with the seeds and options that were set; returns the observations."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"worlds are reset together, with the same options, got {self._options}")
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observations, infos = self.envs.reset(seed=seeds, options=self._options[0] or None)  # type: ignore[arg-type]
        self.reset_infos = [select_env_info(infos, world) for world in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: Any) -> None:
        """See ``step_wait``."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Return the results of the step: observations, rewards float32, dones, and one info per world."""
        observations, rewards, terminated, truncated, batched = self.envs.step(self._actions)
        dones, infos = terminated | truncated, []
        for world in range(self.num_envs):
            info = select_env_info(batched, world)
            if dones[world]:  # the infos next to the final observation belong to the next episode
                last, final = info.pop("final_obs"), info.pop("final_info")
                self.reset_infos[world], info = info, {**final, "terminal_observation": last}
            infos.append({**info, "TimeLimit.truncated": bool(truncated[world] and not terminated[world])})
            if self.sign_rewards:
                infos[-1]["reward"] = float(rewards[world])
        rewards = np.sign(rewards) if self.sign_rewards else rewards
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_images(self) -> Any:
        """Return the worlds' frames."""
        return self.envs.render()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments for each of the worlds."""
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all worlds."""
        if indices is not None:
            raise ValueError(f"{attr_name}: the worlds are one object, so that an attribute is set for all of them")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Raise AttributeError: there are no single environments to call."""
        raise AttributeError(f"{method_name}: the worlds are one object; call envs.{method_name}")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each world: none has a wrapper of its own."""
        return [False] * len(list(self._get_indices(indices)))
