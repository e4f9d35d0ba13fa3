"""Environments that agents live in: some copies of a game, played in step.

Every episode begins with a seed of its own, a function of (seed, copy, episode). It follows that the state of a copy
is its episode's number and what was done in it since, and that a resumed run goes on exactly where it stood.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.spaces import ActionSpace
from vwm.envs.recording_envs import (
    EnvActionSpec,
    env_action_spec,
    is_image_space,
    make_gymnasium,
    rendering_disabled,
    resize_frame,
)
from vwm.envs.time_step import EnvSpaces, TimeStep


class BatchedEnv(ABC):
    """Copies of a game that step together.

    Attributes:
        spaces: what each shows and takes.
        count: how many.
    """

    spaces: EnvSpaces
    count: int

    @abstractmethod
    def reset(self) -> TimeStep:
        """Begin anew in every copy, with the first episode of each."""

    @abstractmethod
    def step(self, action: Tensor) -> TimeStep:
        """Play int64 [count] or float32 [count, a] in [-1, 1]; where the last moment was one, the next episode."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers from which ``load_state_dict`` goes on exactly."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """Go on from there; returns the moment that was current."""

    @abstractmethod
    def render(self) -> NDArray[np.uint8] | None:
        """A picture of the first copy [h, w, 3], or None where it has none."""

    @abstractmethod
    def close(self) -> None:
        """Free what the games hold."""


class EnvSpec(ABC):
    """What a config names: a kind of environment, of which a training opens some and an evaluation others."""

    def __str__(self) -> str:
        """For people: the settings of a dataclass that are not the defaults."""
        settings: dict[str, Field[Any]] = getattr(self, "__dataclass_fields__", {})
        said = [f"{name}={getattr(self, name)}" for name, about in settings.items() if not _is_default(self, about)]
        return f"{type(self).__name__}({', '.join(said)})"

    @abstractmethod
    def open(self, count: int, seed: int, draws: bool = False) -> BatchedEnv:
        """Open copies.

        Args:
            count: how many.
            seed: of all their episodes; other seeds never share one.
            draws: ``render`` will be called, also where the observations are no pictures.
        """

    @property
    def bare(self) -> EnvSpec:
        """What is played here, without what it is seen through: enough for who does not look."""
        return self

    def vector_env(self, count: int, seed: int) -> VectorEnv[Any, Any, Any]:
        """The same behind Gymnasium's face, for agents from elsewhere; an episode's end begins the next at once."""
        seeds = [int(s) for s in np.random.SeedSequence([seed, count]).generate_state(count)]
        makers = [lambda s=s: GymnasiumEnvAdapter(self, s) for s in seeds]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


@dataclass(frozen=True)
class GymnasiumEnvSpec(EnvSpec):
    """A Gymnasium environment by the id that ``vwm record`` takes: ``ALE/...``, ``procgen:...``, ``module:Id-v0``.

    Attributes:
        env: the id.
        pixels: show what it renders, where its observations are vectors; pictures stay pictures.
        size: side of the pictures.
        action_repeat: steps of the game that an action is held for; their rewards are added up.
        time_limit: decisions after which an episode is truncated, below the game's own limit; None leaves it.
        options: of the game's constructor.
    """

    env: str
    pixels: bool = False
    size: int = 64
    action_repeat: int = 1
    time_limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("size", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{self.env}: {name} must be 1 or more, got {value}")

    def open(self, count: int, seed: int, draws: bool = False) -> GymnasiumBatchedEnv:
        """See ``EnvSpec.open``."""
        return GymnasiumBatchedEnv(self, count, seed, draws)


class GymnasiumBatchedEnv(BatchedEnv):
    """See ``BatchedEnv``; made by ``GymnasiumEnvSpec.open``.

    Raises:
        ImportError, ValueError: the game cannot be had, or is of a kind that agents here do not play.
    """

    def __init__(self, game: GymnasiumEnvSpec, count: int, seed: int, draws: bool = False) -> None:
        if count < 1:
            raise ValueError(f"{game.env}: there must be 1 environment or more, got {count}")
        self.count = count
        self.copies = [_SingleEnv(game, seed, number, draws and number == 0) for number in range(count)]
        self.spaces = self.copies[0].spaces

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        return _stack_time_steps([copy.begin(0) for copy in self.copies])

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        done = action.cpu().numpy()
        return _stack_time_steps([copy.step(what) for copy, what in zip(self.copies, done, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Each copy's episode, and what was done in it."""
        return {"copies": [copy.state_dict() for copy in self.copies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> TimeStep:
        """See ``BatchedEnv.load_state_dict``; every unfinished episode is played again up to where it stood."""
        if len(state["copies"]) != self.count:
            raise ValueError(f"the state is of {len(state['copies'])} environments, these are {self.count}")
        return _stack_time_steps([c.load_state_dict(s) for c, s in zip(self.copies, state["copies"], strict=True)])

    def render(self) -> NDArray[np.uint8] | None:
        """See ``BatchedEnv.render``."""
        return self.copies[0].render()

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        for copy in self.copies:
            copy.game.close()


class GymnasiumEnvAdapter(gymnasium.Env[NDArray[Any], Any]):
    """One copy of a game as a Gymnasium environment.

    Every episode has a seed of its own (see above): a function of this one's, of the last one that ``reset`` was given,
    and of how many there were since.

    Args:
        game: any.
        seed: of all its episodes.
    """

    def __init__(self, game: EnvSpec, seed: int) -> None:
        self.game, self.seed = game, seed
        self.np_random = np.random.default_rng(seed)
        self.worlds, self.begun, self.over = game.open(1, seed), False, False
        shape, actions = self.worlds.spaces.observation, self.worlds.spaces.actions
        low, high, kind = (0, 255, np.uint8) if self.worlds.spaces.pixels else (-np.inf, np.inf, np.float32)
        self.observation_space = spaces.Box(low, high, shape, kind)
        discrete = actions.kind == "discrete"
        self.action_space = spaces.Discrete(actions.size) if discrete else spaces.Box(-1.0, 1.0, (actions.size,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode: the seed's first one, or another than all before."""
        super().reset(seed=seed)
        if seed is None and self.over:
            moment = self.worlds.step(self._nothing())
        else:
            if seed is not None or self.begun:  # episodes are a function of the seed that a game is opened with
                self._reopen(int(self.np_random.integers(2**31)))
            moment = self.worlds.reset()
        self.begun, self.over = True, False
        return moment.observation[0].numpy(), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """One decision: observation, reward, terminated, truncated, info."""
        moment = self.worlds.step(torch.as_tensor(np.asarray(action))[None])
        terminated, self.over = bool(moment.is_terminal[0]), bool(moment.is_last[0])
        return moment.observation[0].numpy(), float(moment.reward[0]), terminated, self.over and not terminated, {}

    def close(self) -> None:
        """Free the game."""
        self.worlds.close()

    def _reopen(self, number: int) -> None:
        self.worlds.close()
        self.worlds = self.game.open(1, int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]))

    def _nothing(self) -> Tensor:
        shape = (1, *self.worlds.spaces.action_shape)
        return torch.zeros(shape, dtype=self.worlds.spaces.action_dtype)


@dataclass(frozen=True)
class _SingleTimeStep:
    """One copy's moment."""

    observation: NDArray[Any]
    reward: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


class _SingleEnv:
    """One copy of a Gymnasium environment."""

    def __init__(self, game: GymnasiumEnvSpec, seed: int, number: int, draws: bool) -> None:
        options = dict(game.options)
        if game.env.startswith("ALE/"):  # it skips inside its emulator
            options = {"frameskip": game.action_repeat, **options}
            draws = False
        elif game.pixels:
            options = {"render_mode": "rgb_array", **options}
        self.game = make_gymnasium(game.env, options)
        draws = draws and "rgb_array" in (self.game.metadata.get("render_modes") or ())
        if draws and not game.pixels and not is_image_space(self.game.observation_space):
            self.game.close()
            self.game = make_gymnasium(game.env, {"render_mode": "rgb_array", **options})
        self.settings, self.seed, self.number = game, seed, number
        self.actions: EnvActionSpec = env_action_spec(game.env, self.game)
        self.native = is_image_space(self.game.observation_space)
        self.drawn, self.repeat = game.pixels and not self.native, 1 if "frameskip" in options else game.action_repeat
        self.draws = draws or self.drawn
        self.spaces = EnvSpaces(self._observation_shape(), _action_space(self.actions))
        self.episode, self.done, self.over = 0, list[NDArray[Any]](), True

    def begin(self, episode: int) -> _SingleTimeStep:
        """The first moment of an episode."""
        seed = np.random.SeedSequence([self.seed, self.number, episode]).generate_state(1)[0]
        self.raw, _ = self.game.reset(seed=int(seed) % 2**31)
        self.episode, self.done, self.over = episode, [], False
        return _SingleTimeStep(self._observe(), is_first=True)

    def step(self, action: NDArray[Any]) -> _SingleTimeStep:
        """The next moment, which is the first of the next episode where this one is over."""
        if self.over:
            return self.begin(self.episode + 1)
        self.done.append(np.array(action))
        own: Any = int(action) if self.actions.count else self.actions.own(action)
        total, terminated, truncated = 0.0, False, False
        for left in reversed(range(self.repeat)):
            with rendering_disabled(self.game.unwrapped) if left else nullcontext():
                self.raw, reward, terminated, truncated, _ = self.game.step(own)
            total += float(reward)
            if terminated or truncated:
                break
        self.over = bool(terminated or truncated or len(self.done) == self.settings.time_limit)
        return _SingleTimeStep(self._observe(), total, is_last=self.over, is_terminal=bool(terminated))

    def state_dict(self) -> dict[str, Any]:
        """The episode's number and the actions since its beginning."""
        return {"episode": self.episode, "done": [torch.as_tensor(action) for action in self.done]}

    def load_state_dict(self, state: Mapping[str, Any]) -> _SingleTimeStep:
        """Play the episode up to where it stood."""
        shown = self.begin(state["episode"])
        for action in state["done"]:
            shown = self.step(action.numpy())
        return shown

    def render(self) -> NDArray[np.uint8] | None:
        """A picture, if there is one."""
        if self.native:
            return np.asarray(self.raw)
        return np.asarray(self.game.render()) if self.draws else None

    def _observation_shape(self) -> tuple[int, ...]:
        if self.native or self.drawn:
            return (self.settings.size, self.settings.size, 3)
        flat = spaces.utils.flatten_space(self.game.observation_space)
        if not isinstance(flat, spaces.Box) or len(flat.shape) != 1:
            raise ValueError(
                f"{self.settings.env}: shows {self.game.observation_space}; agents see pictures or vectors. "
                "pixels: true shows what it renders."
            )
        return (int(flat.shape[0]),)

    def _observe(self) -> NDArray[Any]:
        if self.native or self.drawn:
            picture = np.asarray(self.raw if self.native else self.game.render())
            return resize_frame(picture, self.settings.size, self.settings.size)
        return np.asarray(spaces.utils.flatten(self.game.observation_space, self.raw), np.float32)


def _is_default(settings: EnvSpec, about: Field[Any]) -> bool:
    default = about.default if about.default_factory is MISSING else about.default_factory()
    return bool(getattr(settings, about.name) == default)


def _action_space(actions: EnvActionSpec) -> ActionSpace:
    if actions.count:
        return ActionSpace("discrete", actions.count, actions.names)
    rest = tuple(actions.rest) if any(actions.rest) else ()
    return ActionSpace("continuous", len(actions.low), actions.names, rest=rest)


def _stack_time_steps(shown: list[_SingleTimeStep]) -> TimeStep:
    observation = torch.from_numpy(np.stack([s.observation for s in shown]))
    flags = [torch.tensor([getattr(s, name) for s in shown]) for name in ("is_first", "is_last", "is_terminal")]
    return TimeStep(observation, torch.tensor([s.reward for s in shown], dtype=torch.float32), *flags)
