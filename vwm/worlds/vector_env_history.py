"""Histories of a vector environment under its autoreset mode, and checks of everything that it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from vwm.worlds.vector_infos import select_env_info

AnyVectorEnv = VectorEnv[Any, Any, Any]


class EnvStepRecord(NamedTuple):
    """One time step of one environment; the first of an episode has reward 0 and does not end it."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


EnvHistory = list[list[EnvStepRecord]]
"""The episodes of one environment."""

ActionChooser = Callable[[int, int, int], Any]
"""The action of an environment by its index, the index of its episode, and the step."""


class EnvHistoryRecorder:
    """Steps environments by the rules of their mode, and records the history of each."""

    def __init__(self, envs: AnyVectorEnv, mode: AutoresetMode, overwrite_returned: bool = False) -> None:
        self.envs = envs
        self.mode = mode
        self.overwrite_returned = overwrite_returned
        self.histories: list[EnvHistory] = []
        self._returned: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def reset(self, **options: Any) -> None:
        observations, infos = self._take(*self.envs.reset(**options))
        self.histories = [[[_first_record(o, infos, w)]] for w, o in enumerate(observations)]

    def reset_masked(self, mask: NDArray[np.bool_]) -> None:
        observations, infos = self._take(*self.envs.reset(options={"reset_mask": mask.copy()}))
        for world, observation in enumerate(observations):
            if mask[world]:
                self.histories[world].append([_first_record(observation, infos, world)])
            else:
                last = self.histories[world][-1][-1].observation
                require_invariant(
                    values_equal(observation, last),
                    "reset_mask",
                    f"world {world} was not to be reset, but its observation changed",
                )

    def step(self, choose: ActionChooser) -> None:
        ended = np.array([_episode_ended(history) for history in self.histories])
        if self.mode is AutoresetMode.DISABLED and ended.any():
            self.reset_masked(ended)
            ended[:] = False
        actions = _batch_actions(
            self.envs.single_action_space,
            [
                choose(w, len(history) - 1, -1 if ended[w] else len(history[-1]) - 1)
                for w, history in enumerate(self.histories)
            ],
        )
        original = copy.deepcopy(actions)
        observations, rewards, terminated, truncated, infos = self.envs.step(actions)
        require_invariant(values_equal(actions, original), "actions", "step changed the actions that it was given")
        _check_outcomes(len(self.histories), rewards, terminated, truncated)
        outcomes = list(zip(rewards.tolist(), terminated.tolist(), truncated.tolist(), strict=True))
        copies, infos = self._take(observations, infos, rewards, terminated, truncated)
        for world, history in enumerate(self.histories):
            self._record(history, world, ended[world], copies[world], outcomes[world], infos)

    def _record(
        self,
        history: EnvHistory,
        world: int,
        ended: bool,
        observation: Any,
        outcome: tuple[float, bool, bool],
        infos: dict[str, Any],
    ) -> None:
        reward, terminated, truncated = outcome
        done, info = terminated or truncated, select_env_info(infos, world)
        if self.mode is AutoresetMode.NEXT_STEP and ended:
            require_invariant(
                reward == 0, "NEXT_STEP", f"world {world} got reward {reward} in the step that resets it, must be 0"
            )
            require_invariant(not done, "NEXT_STEP", f"world {world} ended in the step that resets it")
            history.append([_first_record(observation, infos, world)])
        elif self.mode is AutoresetMode.SAME_STEP:
            for key in ("final_obs", "final_info"):
                require_invariant(
                    (key in info) == done,
                    "SAME_STEP",
                    f"{key} and its mask must be there for the worlds that ended "
                    f"and no others; world {world} " + ("ended" if done else "did not end"),
                )
            if done:
                last, final = info.pop("final_obs"), info.pop("final_info")
                space = self.envs.single_observation_space
                require_invariant(space.contains(last), "SAME_STEP", f"final_obs of world {world} is not in {space}")
                history[-1].append(EnvStepRecord(last, *outcome, final))
                history.append([EnvStepRecord(observation, 0.0, False, False, info)])
            else:
                history[-1].append(EnvStepRecord(observation, *outcome, info))
        else:
            history[-1].append(EnvStepRecord(observation, *outcome, info))

    def _take(self, observations: Any, infos: dict[str, Any], *arrays: Any) -> tuple[list[Any], dict[str, Any]]:
        """Check what was returned, copy it, and either keep it or write into it."""
        space, single = self.envs.observation_space, self.envs.single_observation_space
        _check_in_space(space, observations)
        _check_infos(infos, self.envs.num_envs)
        copies = [copy.deepcopy(o) for o in iterate(space, observations)]
        for world, observation in enumerate(copies):
            require_invariant(single.contains(observation), "spaces", f"world {world}'s observation is not in {single}")
        infos_copy = copy.deepcopy(infos)
        for array in _iterate_arrays((observations, infos, arrays)):
            if not self.overwrite_returned:
                self._returned.append((array, array.copy()))
            elif array.flags.writeable:
                array[...] = np.ones((), array.dtype)
        return copies, infos_copy

    def check_returned_unchanged(self) -> None:
        """Check that returned arrays did not change later."""
        for array, original in self._returned:
            require_invariant(
                values_equal(array, original),
                "ownership",
                "an array that was returned has changed since: return copies",
            )


def _check_in_space(space: Space[Any], observations: Any) -> None:
    if isinstance(observations, np.ndarray) and space.dtype is not None:
        require_invariant(
            observations.dtype == space.dtype, "spaces", f"observations are {observations.dtype}, not {space.dtype}"
        )
    require_invariant(space.contains(observations), "spaces", f"observations are not in {space}:", observations)


def _check_outcomes(worlds: int, rewards: Any, terminated: Any, truncated: Any) -> None:
    for name, array, kind in (
        ("rewards", rewards, np.floating),
        ("terminations", terminated, np.bool_),
        ("truncations", truncated, np.bool_),
    ):
        fits = isinstance(array, np.ndarray) and array.shape == (worlds,) and np.issubdtype(array.dtype, kind)
        require_invariant(fits, "spaces", f"{name} must be {kind.__name__} [{worlds}], got", array)
    require_invariant(bool(np.isfinite(rewards).all()), "spaces", "rewards must be finite, got", rewards)


def _check_infos(infos: Any, worlds: int, inner: bool = False) -> None:
    """Check that entries are arrays over worlds or nested dicts, with masks; nested dicts may share the outer mask."""
    require_invariant(isinstance(infos, dict), "infos", f"must be a dict, got {type(infos).__name__}")
    for key, value in infos.items():
        if key.startswith("_"):
            continue
        mask = infos.get(f"_{key}")
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (worlds,)
        require_invariant(
            fits or (inner and mask is None), "infos", f"_{key} must be a mask, bool [{worlds}], got", mask
        )
        if isinstance(value, dict):
            _check_infos(value, worlds, inner=True)
        else:
            fits = isinstance(value, np.ndarray) and len(value) == worlds
            require_invariant(fits, "infos", f"{key} must be an array of {worlds}, one per world, got", value)


def require_same_histories(
    some: list[EnvHistory], others: list[EnvHistory], invariant: str, what: str, tolerance: float = 0.0
) -> None:
    """Check that two runs have equal episodes in every world, as far as both last."""
    for world, (a, b) in enumerate(zip(some, others, strict=True)):
        for number, (x, y) in enumerate(zip(a, b, strict=False)):
            for step, (one, other) in enumerate(zip(x, y, strict=False)):
                for name, left, right in zip(EnvStepRecord._fields, one, other, strict=True):
                    require_invariant(
                        values_equal(left, right, tolerance),
                        invariant,
                        f"{what} (world {world}, episode {number}, step {step}: {name}):",
                        left,
                        right,
                    )


def values_equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Compare nested data, types and shapes included; numbers within a tolerance, if it is above 0."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(values_equal(a[k], b[k], tolerance) for k in a)
    if isinstance(a, tuple | list):
        return (
            isinstance(b, tuple | list)
            and len(a) == len(b)
            and all(values_equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if np.issubdtype(x.dtype, np.number) and tolerance:
        return bool(np.allclose(x.astype(np.float64), y.astype(np.float64), rtol=1e-5, atol=tolerance, equal_nan=True))
    return bool(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact)))


def _first_record(observation: Any, infos: dict[str, Any], world: int) -> EnvStepRecord:
    return EnvStepRecord(observation, 0.0, False, False, select_env_info(infos, world))


def _episode_ended(history: EnvHistory) -> bool:
    return history[-1][-1].terminated or history[-1][-1].truncated


def _batch_actions(space: Space[Any], actions: list[Any]) -> Any:
    out: Any = create_empty_array(space, n=len(actions))
    return concatenate(space, actions, out)


def _iterate_arrays(data: Any) -> Iterator[NDArray[Any]]:
    """Yield the numeric arrays in nested data."""
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, np.ndarray) and data.dtype != object:
        yield data
    elif isinstance(data, tuple | list | np.ndarray):
        for item in data:
            yield from _iterate_arrays(item)


def require_invariant(holds: bool, invariant: str, what: str, *values: Any) -> None:
    """Raise AssertionError with the name of a violated invariant; values, which take long to print, stand behind."""
    if not holds:
        shown = " and ".join(repr(value) for value in values)
        raise AssertionError(f"{invariant}: {what} {shown}".rstrip())
