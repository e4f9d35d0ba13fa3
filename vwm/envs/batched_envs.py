"""The batched protocol of environments, and Gymnasium environments behind it for agents.

Recording, agents and evaluation all play a ``BatchedEnv``. In the environments that agents learn in, every episode has
a seed of its own, a function of (seed, copy, episode). The state of a copy is therefore its episode's number and the
actions since its start, and a resumed run continues exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.envs.wrapped_env import WrappedEnv


class BatchedEnv(ABC):
    """Copies of an environment that step together.

    Attributes:
        spaces: observation and action space of each copy. Agents meet composite actions as continuous ones that stand
            for them (``ActionSpace.flat``).
        count: number of copies.
        autoreset: what follows the end of an episode, see ``TimeStep``.
        frames_per_step: number of observations that a step shows; above 1, they have a dimension after the batch.
    """

    spaces: EnvSpaces
    count: int
    autoreset: AutoresetMode = AutoresetMode.NEXT_STEP
    frames_per_step: int = 1

    @abstractmethod
    def reset(self) -> TimeStep:
        """Start over in every copy, with its first episode."""

    @abstractmethod
    def step(self, action: Tensor) -> TimeStep:
        """Take actions of ``spaces.actions``, int64 [count] or float32 [count, a]."""

    def begin_step(self, action: Tensor) -> None:
        """Begin ``step``, whose time step ``end_step`` returns; where they have processes of their own, it goes on."""
        self._begun = self.step(action)

    def end_step(self) -> TimeStep:
        """Return the time step of the step that was begun."""
        return self._begun

    @abstractmethod
    def close(self) -> None:
        """Release what the environments hold."""

    def achievements(self) -> list[dict[str, bool]]:
        """Whether the current episode of each copy has reached each goal, by name; {} where it has none."""
        return [{} for _ in range(self.count)]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers from which ``load_state_dict`` continues exactly."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """Continue from a saved state; return the time step that was current."""
        raise NotImplementedError(f"{type(self).__name__} cannot be resumed")

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image of the first copy, uint8 [h, w, 3], or None where it has none."""
        return None


class EnvSpec(ABC):
    """How an environment is made: what a config names, and what training and evaluation open copies of."""

    def __str__(self) -> str:
        """Name the class and the settings of a dataclass that differ from the defaults."""
        settings: dict[str, Field[Any]] = getattr(self, "__dataclass_fields__", {})
        changed = [
            f"{name}={getattr(self, name)}" for name, setting in settings.items() if not _is_default(self, setting)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    @abstractmethod
    def open(self, count: int, seed: int, renderable: bool = False) -> BatchedEnv:
        """Open copies.

        Args:
            count: number of copies.
            seed: of all their episodes; different seeds never share an episode.
            renderable: ``render`` will be called, also where the observations are not images.
        """

    @property
    def is_simulated(self) -> bool:
        """Whether a learned world stands for the environment."""
        return False

    @property
    def unwrapped(self) -> EnvSpec:
        """The same environment without encoders of its observations, for policies that ignore observations."""
        return self

    def vector_env(self, count: int, seed: int) -> VectorEnv[Any, Any, Any]:
        """Open copies as a Gymnasium vector environment; it resets in the step that ends an episode."""
        seeds = [int(s) for s in np.random.SeedSequence([seed, count]).generate_state(count)]
        makers = [lambda s=s: GymnasiumEnvAdapter(self, s) for s in seeds]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


@dataclass(frozen=True)
class GymnasiumEnvSpec(EnvSpec):
    """A Gymnasium environment by its id, the same ids that ``vwm record`` takes (see ``vwm.envs.env_ids.make_env``).

    Attributes:
        env: the id.
        pixels: observe what it renders where its observations are vectors; image observations stay as they are.
        size: side of the images in pixels.
        action_repeat: steps of the environment for which an action is held; their rewards are added up.
        time_limit: decisions after which an episode is truncated, below the environment's own limit; None disables it.
        options: arguments of the environment's constructor.
        enumerate_actions: show composite actions of choices and keys to agents as one discrete action per combination
            (``ActionSpace.enumerated``), instead of as continuous ones that stand for them; for MuZero.
    """

    env: str
    pixels: bool = False
    size: int = 64
    action_repeat: int = 1
    time_limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    enumerate_actions: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self.env}: {name} must be 1 or more, got {value}")

    def open(self, count: int, seed: int, renderable: bool = False) -> GymnasiumBatchedEnv:
        """See ``EnvSpec.open``."""
        return GymnasiumBatchedEnv(self, count, seed, renderable)


class GymnasiumBatchedEnv(BatchedEnv):
    """Copies of a Gymnasium environment, stepped one after the other; made by ``GymnasiumEnvSpec.open``.

    Args:
        spec, count, seed, renderable: see ``EnvSpec.open``.
        first: number of the first copy, where these are some of several.

    Raises:
        ImportError, ValueError: see ``WrappedEnv``, and ``ActionSpace.enumerated``.
    """

    def __init__(self, spec: GymnasiumEnvSpec, count: int, seed: int, renderable: bool = False, first: int = 0) -> None:
        if count < 1:
            raise ValueError(f"{spec.env}: there must be 1 environment or more, got {count}")
        self.count = count
        self.copies = [
            _EpisodicEnv(spec, seed, index, renderable and index == 0) for index in range(first, first + count)
        ]
        env = self.copies[0].env
        self.actions = env.actions.space
        self.enumerates = spec.enumerate_actions
        self.spaces = EnvSpaces(env.observations, self.actions.enumerated if self.enumerates else self.actions.flat)

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        return _stack_time_steps([copy.reset(0) for copy in self.copies])

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        to_rows = self.actions.from_enumerated if self.enumerates else self.actions.from_flat
        actions = to_rows(action).cpu().numpy()
        return _stack_time_steps([copy.step(env_action) for copy, env_action in zip(self.copies, actions, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Return the episode of each copy and the actions since its beginning."""
        return {"copies": [copy.state_dict() for copy in self.copies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``; every unfinished episode is replayed up to its current time step."""
        if len(state["copies"]) != self.count:
            raise ValueError(f"the state is of {len(state['copies'])} environments, these are {self.count}")
        return _stack_time_steps([c.load_state_dict(s) for c, s in zip(self.copies, state["copies"], strict=True)])

    def achievements(self) -> list[dict[str, bool]]:
        """See ``BatchedEnv.achievements``, and ``vwm.envs.wrapped_env.read_achievements``."""
        return [dict(copy.env.achievements) for copy in self.copies]

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``."""
        return self.copies[0].env.render()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        for copy in self.copies:
            copy.env.close()


class GymnasiumEnvAdapter(gymnasium.Env[NDArray[Any], Any]):
    """One copy of any environment as a Gymnasium environment.

    The seed of an episode is a function of this seed, of the last seed that ``reset`` was given, and of the number of
    episodes since.

    Args:
        spec: the environment.
        seed: of all its episodes.
    """

    def __init__(self, spec: EnvSpec, seed: int) -> None:
        self.env_spec = spec
        self.seed = seed
        self.np_random = np.random.default_rng(seed)
        self.envs = spec.open(1, seed)
        self.has_begun = False
        self.has_ended = False
        observation, actions = self.envs.spaces.observation, self.envs.spaces.actions
        low, high, dtype = (0, 255, np.uint8) if observation.is_image else (-np.inf, np.inf, np.float32)
        self.observation_space = spaces.Box(low, high, observation.shape, dtype)
        self.action_space = (
            spaces.Discrete(actions.size) if actions.is_discrete else spaces.Box(-1.0, 1.0, (actions.size,))
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode: the seed's first one, or the next one."""
        super().reset(seed=seed)
        if seed is None and self.has_ended:
            actions = self.envs.spaces.actions
            time_step = self.envs.step(torch.zeros((1, *actions.shape), dtype=actions.dtype))
        else:
            if seed is not None or self.has_begun:  # episodes are a function of the seed that copies are opened with
                self._reopen(int(self.np_random.integers(2**31)))
            time_step = self.envs.reset()
        self.has_begun = True
        self.has_ended = False
        return time_step.observation[0].numpy(), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action: observation, reward, terminated, truncated, info."""
        time_step = self.envs.step(torch.as_tensor(np.asarray(action))[None])
        terminated = bool(time_step.is_terminal[0])
        self.has_ended = bool(time_step.is_last[0])
        truncated = self.has_ended and not terminated
        return time_step.observation[0].numpy(), float(time_step.reward[0]), terminated, truncated, {}

    def close(self) -> None:
        """Release what the environment holds."""
        self.envs.close()

    def _reopen(self, number: int) -> None:
        self.envs.close()
        self.envs = self.env_spec.open(1, int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))


@dataclass(frozen=True)
class _CopyTimeStep:
    """The time step of one copy."""

    observation: NDArray[Any]
    reward: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


class _EpisodicEnv:
    """One copy of a Gymnasium environment, whose episodes have seeds of their own."""

    def __init__(self, spec: GymnasiumEnvSpec, seed: int, index: int, renderable: bool) -> None:
        self.env = WrappedEnv(spec.env, spec.options, spec.size, spec.action_repeat, spec.pixels, renderable)
        self.time_limit = spec.time_limit
        self.seed = seed
        self.index = index
        self.episode = 0
        self.actions: list[NDArray[Any]] = []
        self.has_ended = True

    def reset(self, episode: int) -> _CopyTimeStep:
        """Start an episode of a given number."""
        seed = np.random.SeedSequence([self.seed, self.index, episode]).generate_state(1)[0]
        self.env.reset(seed=int(seed) % 2**31)
        self.episode = episode
        self.actions = []
        self.has_ended = False
        return _CopyTimeStep(self._observe(), is_first=True)

    def step(self, action: NDArray[Any]) -> _CopyTimeStep:
        """Take an action; after the end of an episode, begin the next one."""
        if self.has_ended:
            return self.reset(self.episode + 1)
        self.actions.append(np.array(action))
        outcome = self.env.step(action)
        self.has_ended = outcome.terminated or outcome.truncated or len(self.actions) == self.time_limit
        if not math.isfinite(outcome.reward):
            raise ValueError(f"{self._position()}: the reward is {outcome.reward}")
        return _CopyTimeStep(self._observe(), outcome.reward, is_last=self.has_ended, is_terminal=outcome.terminated)

    def _observe(self) -> NDArray[Any]:
        """Return the observation. Raises ValueError where it is not finite."""
        observation = self.env.observe()
        if observation.dtype.kind == "f" and not np.isfinite(observation).all():
            raise ValueError(f"{self._position()}: the observation has values that are not finite: {observation}")
        return observation

    def _position(self) -> str:
        return f"environment {self.index}, episode {self.episode}, step {len(self.actions)}"

    def state_dict(self) -> dict[str, Any]:
        """Return the episode's number and the actions since its beginning."""
        return {"episode": self.episode, "actions": [torch.as_tensor(action) for action in self.actions]}

    def load_state_dict(self, state: Mapping[str, Any]) -> _CopyTimeStep:
        """Replay the episode up to its current time step."""
        time_step = self.reset(state["episode"])
        for action in state["actions"]:
            time_step = self.step(action.numpy())
        return time_step


def _is_default(spec: EnvSpec, setting: Field[Any]) -> bool:
    default = setting.default if setting.default_factory is MISSING else setting.default_factory()
    return bool(getattr(spec, setting.name) == default)


def _stack_time_steps(steps: list[_CopyTimeStep]) -> TimeStep:
    observation = torch.from_numpy(np.stack([s.observation for s in steps]))
    flags = [torch.tensor([getattr(s, name) for s in steps]) for name in ("is_first", "is_last", "is_terminal")]
    return TimeStep(observation, torch.tensor([s.reward for s in steps], dtype=torch.float32), *flags)
