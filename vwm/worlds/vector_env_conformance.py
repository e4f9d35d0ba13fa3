"""A conformance test for Gymnasium's ``VectorEnv``; Gymnasium checks single environments and has none for these.

    check_vector_env(
        lambda num_envs, autoreset_mode, max_episode_steps: SimulatorVectorEnv(
            simulator, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
    )

Its one idea: what the worlds live through does not depend on how it is looked at. Played with the same seeds and
actions, they must have the same episodes in every autoreset mode, under other actions in a world next door, under
another time limit (as far as it lasts), and when the caller writes into what was returned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.spaces import Space
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from vwm.worlds.vector_infos import select_env_info

AnyVectorEnv = VectorEnv[Any, Any, Any]


class VectorEnvFactory(Protocol):
    """Makes the environments under test, always alike."""

    def __call__(self, num_envs: int, autoreset_mode: AutoresetMode, max_episode_steps: int) -> AnyVectorEnv:
        """So many worlds, in that mode, with episodes truncated after so many steps."""


class EnvStepRecord(NamedTuple):
    """One world at one moment. At the first one of an episode nothing was earned and nothing has ended."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


EnvHistory = list[list[EnvStepRecord]]
"""One world's episodes."""

ActionChooser = Callable[[int, int, int], Any]
"""The action of a world (its number), in an episode (likewise), at a step."""


def check_vector_env(
    make: VectorEnvFactory,
    num_envs: int = 3,
    max_episode_steps: int = 6,
    steps: int = 24,
    seed: int = 0,
    tolerance: float = 0.0,
) -> None:
    """Check that vector environments keep the laws of Gymnasium's interface.

    Checked are the spaces, and that everything returned lies in them; the seeds (equal ones give equal runs, s gives
    world i what s + i gives it); that worlds are strangers to each other; the three autoreset modes; that a time limit
    truncates and does not terminate; infos and their masks; that what is returned belongs to the caller; closing.

    Args:
        make: makes environments, of several worlds, each a function of its seed and its actions.
        num_envs: worlds in a batch, 2 or more.
        max_episode_steps: time limit of the episodes that are looked at. Terminations are seen where random actions
            lead to some within it.
        steps: length of the runs; several episodes.
        seed: of worlds and actions.
        tolerance: how far two numbers may differ (beside 1e-5 of their size) that should be equal but were computed in
            batches of another composition, where floating-point sums may round otherwise; 0 wants them equal. What is
            repeated alike must be equal bit by bit.

    Raises:
        AssertionError: a law is broken; the message says which and where.
        ValueError: the arguments leave nothing to check.
    """
    if num_envs < 2 or steps < 2 * max_episode_steps + 2:
        raise ValueError(
            f"num_envs={num_envs} must be 2 or more, and steps={steps} last for two episodes: "
            f"{2 * max_episode_steps + 2} or more"
        )
    trial = _ConformanceTrial(make, num_envs, max_episode_steps, steps, seed, tolerance)
    for mode in AutoresetMode:
        _check_spaces(trial, mode)
        _check_reproducibility(trial, mode)
        _check_ownership(trial, mode)
    _check_seeds(trial)
    _check_independence(trial)
    _check_autoreset_modes(trial)
    _check_time_limit(trial)
    _check_partial_reset(trial)
    _check_close(trial)


@dataclass(frozen=True)
class _ConformanceTrial:
    make: VectorEnvFactory
    num_envs: int
    limit: int
    steps: int
    seed: int
    tolerance: float
    reference_histories: dict[AutoresetMode, list[EnvHistory]] = field(default_factory=dict)

    @contextmanager
    def open(self, mode: AutoresetMode = AutoresetMode.NEXT_STEP, limit: int | None = None) -> Iterator[AnyVectorEnv]:
        envs = self.make(self.num_envs, mode, self.limit if limit is None else limit)
        try:
            yield envs
        finally:
            if not envs.closed:
                envs.close()

    def chooser(self, space: Space[Any], others: Sequence[int] = (), idle: int = 0) -> ActionChooser:
        """Actions that depend on nothing but world, episode and step; other ones in some worlds, or when idle."""
        space = copy.deepcopy(space)

        def choose(world: int, episode: int, step: int) -> Any:
            key = [self.seed, world, episode, step + 1, int(world in others), idle if step < 0 else 0]
            space.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            return space.sample()

        return choose

    def live(self, mode: AutoresetMode, limit: int | None = None, **how: Any) -> list[EnvHistory]:
        """The lives of fresh worlds."""
        with self.open(mode, limit) as envs:
            return self.record_histories_in(envs, mode, **how)

    def plain(self, mode: AutoresetMode) -> list[EnvHistory]:
        """What the others are compared with."""
        if mode not in self.reference_histories:
            self.reference_histories[mode] = self.live(mode)
        return self.reference_histories[mode]

    def extra_seeds(self) -> list[int]:
        """For what needs an episode that does not terminate soon: some are tried."""
        return [self.seed + i * self.num_envs for i in range(self.steps)]

    def record_histories_in(
        self,
        envs: AnyVectorEnv,
        mode: AutoresetMode,
        seed: int | list[int | None] | None = -1,
        others: Sequence[int] = (),
        idle: int = 0,
        scribble: bool = False,
        steps: int | None = None,
    ) -> list[EnvHistory]:
        """Reset the worlds and play; ``idle`` picks the actions that NEXT_STEP must ignore, -1 the trial's own seed."""
        player = _HistoryRecorder(envs, mode, scribble)
        player.reset(seed=self.seed if seed == -1 else seed)
        choose = self.chooser(envs.single_action_space, others, idle)
        for _ in range(self.steps if steps is None else steps):
            player.step(choose)
        player.check_returned_unchanged()
        return player.lives


class _HistoryRecorder:
    """Plays environments by the rules of their mode, and records each world's life."""

    def __init__(self, envs: AnyVectorEnv, mode: AutoresetMode, scribble: bool = False) -> None:
        self.envs, self.mode, self.scribble = envs, mode, scribble
        self.lives: list[EnvHistory] = []
        self._kept: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def reset(self, **how: Any) -> None:
        observations, infos = self._take(*self.envs.reset(**how))
        self.lives = [[[_first_record(o, infos, w)]] for w, o in enumerate(observations)]

    def reset_masked(self, mask: NDArray[np.bool_]) -> None:
        observations, infos = self._take(*self.envs.reset(options={"reset_mask": mask.copy()}))
        for world, observation in enumerate(observations):
            if mask[world]:
                self.lives[world].append([_first_record(observation, infos, world)])
            else:
                last = self.lives[world][-1][-1].observation
                _require(
                    _equal(observation, last),
                    "reset_mask",
                    f"world {world} was not to be reset, but shows another observation than before",
                )

    def step(self, choose: ActionChooser) -> None:
        ended = np.array([_episode_ended(life) for life in self.lives])
        if self.mode is AutoresetMode.DISABLED and ended.any():
            self.reset_masked(ended)
            ended[:] = False
        actions = _batch_actions(
            self.envs.single_action_space,
            [choose(w, len(life) - 1, -1 if ended[w] else len(life[-1]) - 1) for w, life in enumerate(self.lives)],
        )
        given = copy.deepcopy(actions)
        observations, rewards, terminated, truncated, infos = self.envs.step(actions)
        _require(_equal(actions, given), "actions", "step changed the actions that it was given")
        _check_outcomes(len(self.lives), rewards, terminated, truncated)
        outcomes = list(zip(rewards.tolist(), terminated.tolist(), truncated.tolist(), strict=True))
        seen, infos = self._take(observations, infos, rewards, terminated, truncated)
        for world, life in enumerate(self.lives):
            self._record(life, world, ended[world], seen[world], outcomes[world], infos)

    def _record(
        self,
        life: EnvHistory,
        world: int,
        ended: bool,
        seen: Any,
        outcome: tuple[float, bool, bool],
        infos: dict[str, Any],
    ) -> None:
        reward, terminated, truncated = outcome
        over, said = terminated or truncated, select_env_info(infos, world)
        if self.mode is AutoresetMode.NEXT_STEP and ended:
            _require(reward == 0, "NEXT_STEP", f"world {world} earned {reward} in the step that resets it, must be 0")
            _require(not over, "NEXT_STEP", f"world {world} ended in the step that resets it")
            life.append([_first_record(seen, infos, world)])
        elif self.mode is AutoresetMode.SAME_STEP:
            for key in ("final_obs", "final_info"):
                _require(
                    (key in said) == over,
                    "SAME_STEP",
                    f"{key} and its mask must be there for the worlds that ended "
                    f"and no others; world {world} " + ("ended" if over else "did not end"),
                )
            if over:
                last, final = said.pop("final_obs"), said.pop("final_info")
                space = self.envs.single_observation_space
                _require(space.contains(last), "SAME_STEP", f"final_obs of world {world} is not in {space}")
                life[-1].append(EnvStepRecord(last, *outcome, final))
                life.append([EnvStepRecord(seen, 0.0, False, False, said)])
            else:
                life[-1].append(EnvStepRecord(seen, *outcome, said))
        else:
            life[-1].append(EnvStepRecord(seen, *outcome, said))

    def _take(self, observations: Any, infos: dict[str, Any], *arrays: Any) -> tuple[list[Any], dict[str, Any]]:
        """Check what was returned, copy it, and remember it or write into it."""
        space, single = self.envs.observation_space, self.envs.single_observation_space
        _check_in_space(space, observations)
        _check_infos(infos, self.envs.num_envs)
        seen = [copy.deepcopy(o) for o in iterate(space, observations)]
        for world, observation in enumerate(seen):
            _require(single.contains(observation), "spaces", f"world {world}'s observation is not in {single}")
        said = copy.deepcopy(infos)
        for array in _iterate_arrays((observations, infos, arrays)):
            if not self.scribble:
                self._kept.append((array, array.copy()))
            elif array.flags.writeable:
                array[...] = np.ones((), array.dtype)
        return seen, said

    def check_returned_unchanged(self) -> None:
        """Nothing that was returned changed under the caller's hands."""
        for array, then in self._kept:
            _require(_equal(array, then), "ownership", "an array that was returned has changed since: return copies")


def _check_spaces(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    with trial.open(mode) as envs:
        _require(envs.num_envs == trial.num_envs, "spaces", f"num_envs is {envs.num_envs}, asked for {trial.num_envs}")
        told = envs.metadata.get("autoreset_mode")
        _require(told is mode, "spaces", f"metadata['autoreset_mode'] is {told}, asked for {mode}")
        for name in ("observation_space", "action_space"):
            space, single = getattr(envs, name), getattr(envs, f"single_{name}")
            batched = batch_space(single, trial.num_envs)
            fits = is_space_dtype_shape_equiv(space, batched)
            _require(fits, "spaces", f"{name} is {space}, but a batch of single_{name} is {batched}")


def _check_reproducibility(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    plain = trial.plain(mode)
    ends = any(len(life) > 1 for life in plain)
    _require(ends, "time limit", f"no episode ended within {trial.steps} steps, their limit is {trial.limit}")
    with trial.open(mode) as envs:
        trial.record_histories_in(envs, mode, seed=trial.seed + 1)
        again = trial.record_histories_in(envs, mode)
    _require_same_histories(plain, again, "seeding", f"two runs with one seed differ, {mode}")


def _check_ownership(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    law = f"writing into what was returned changed what came later: return copies, {mode}"
    _require_same_histories(trial.plain(mode), trial.live(mode, scribble=True), "ownership", law)


def _check_seeds(trial: _ConformanceTrial) -> None:
    mode, s, n = AutoresetMode.NEXT_STEP, trial.seed, trial.num_envs
    alike = trial.live(mode, seed=[s + i for i in range(n)])
    _require_same_histories(
        trial.plain(mode), alike, "seeding", "the integer s must seed world i with s + i, as a list of them does"
    )
    runs = []
    for _ in range(2):
        with trial.open() as envs:
            turned = _HistoryRecorder(envs, mode)
            turned.reset(seed=[s + (i + 1) % n for i in range(n)])
            trial.record_histories_in(envs, mode)
            runs.append(trial.record_histories_in(envs, mode, seed=None))
    _require_same_histories(
        runs[0],
        runs[1],
        "seeding",
        "a reset without a seed must go on with the generators, but two equal runs went apart",
    )
    for world, life in enumerate(turned.lives):
        own = trial.plain(mode)[(world + 1) % n][0][:1]
        law = "a world's first moment depends on more than its own seed"
        _require_same_histories([life], [[own]], "seeding", law, trial.tolerance)


def _check_independence(trial: _ConformanceTrial) -> None:
    """Other actions in the first world, and its ends at other times, leave the rest alone."""
    mode = AutoresetMode.NEXT_STEP
    alone, stirred = trial.plain(mode)[1:], trial.live(mode, others=(0,))[1:]
    _require_same_histories(
        alone, stirred, "strangers", "what one world did changed another (worlds counted from 1)", trial.tolerance
    )


def _check_autoreset_modes(trial: _ConformanceTrial) -> None:
    next_step = trial.plain(AutoresetMode.NEXT_STEP)
    idle = trial.live(AutoresetMode.NEXT_STEP, idle=1)
    _require_same_histories(
        next_step, idle, "NEXT_STEP", "the action of the step that resets a world must be ignored", trial.tolerance
    )
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        law = f"{mode.name} shows other episodes than NEXT_STEP"
        _require_same_histories(next_step, trial.plain(mode), mode.name, law, trial.tolerance)


def _check_time_limit(trial: _ConformanceTrial) -> None:
    mode = AutoresetMode.DISABLED
    for world, life in enumerate(trial.plain(mode)):
        for episode in life:
            for step, shown in enumerate(episode):
                fits = step <= trial.limit and (shown.truncated == (step == trial.limit) or shown.terminated)
                what = f"world {world} has truncated={shown.truncated} after {step} steps, its limit is {trial.limit}"
                _require(fits, "time limit", what)
    for seed in trial.extra_seeds():
        short, long = (
            trial.live(mode, limit, seed=seed, steps=trial.limit) for limit in (trial.limit, 2 * trial.limit)
        )
        for world, lives in enumerate(zip(short, long, strict=True)):
            for one, other in zip(lives[0][0], lives[1][0], strict=False):
                what = f"another one may change nothing but truncated, but world {world} shows {one} and {other}"
                _require(_equal(one._replace(truncated=other.truncated), other, trial.tolerance), "time limit", what)
        if any(len(life[0]) > trial.limit and not life[0][-1].terminated for life in long):
            break  # a world saw the limit pass


def _check_partial_reset(trial: _ConformanceTrial) -> None:
    """Resetting the first world in mid-episode leaves the others alone, and starts its clock anew."""
    plain = trial.plain(AutoresetMode.DISABLED)[1:]
    others = _histories_with_partial_reset(trial, trial.seed, trial.steps)[1:]
    _require_same_histories(
        plain, others, "reset_mask", "a world that was not to be reset was disturbed", trial.tolerance
    )
    for seed in trial.extra_seeds():
        again = _histories_with_partial_reset(trial, seed, trial.limit + 1)[0][1]
        fits = len(again) == trial.limit + 1 or again[-1].terminated
        what = f"an episode that it began lasted {len(again) - 1} steps, its limit is {trial.limit}"
        _require(fits, "reset_mask", what)
        if not again[-1].terminated:
            break  # the clock was seen


def _histories_with_partial_reset(trial: _ConformanceTrial, seed: int, steps: int) -> list[EnvHistory]:
    """Lives in which the first world was reset after one step."""
    with trial.open(AutoresetMode.DISABLED) as envs:
        player, choose = _HistoryRecorder(envs, AutoresetMode.DISABLED), trial.chooser(envs.single_action_space)
        player.reset(seed=seed)
        player.step(choose)
        player.reset_masked(np.arange(trial.num_envs) == 0)
        for _ in range(steps - 1):
            player.step(choose)
    return player.lives


def _check_close(trial: _ConformanceTrial) -> None:
    with trial.open() as envs:
        envs.reset(seed=trial.seed)
        for time in ("first", "second"):
            try:
                envs.close()
            except Exception as error:
                raise AssertionError(f"closing: the {time} close() raised {error!r}") from error
        _require(envs.closed, "closing", "closed is not True after close()")


def _check_in_space(space: Space[Any], observations: Any) -> None:
    if isinstance(observations, np.ndarray) and space.dtype is not None:
        _require(
            observations.dtype == space.dtype, "spaces", f"observations are {observations.dtype}, not {space.dtype}"
        )
    _require(space.contains(observations), "spaces", f"observations are not in {space}: {observations!r}")


def _check_outcomes(worlds: int, rewards: Any, terminated: Any, truncated: Any) -> None:
    for name, array, kind in (
        ("rewards", rewards, np.floating),
        ("terminations", terminated, np.bool_),
        ("truncations", truncated, np.bool_),
    ):
        fits = isinstance(array, np.ndarray) and array.shape == (worlds,) and np.issubdtype(array.dtype, kind)
        _require(fits, "spaces", f"{name} must be {kind.__name__} [{worlds}], got {array!r}")
    _require(bool(np.isfinite(rewards).all()), "spaces", f"rewards must be finite, got {rewards}")


def _check_infos(infos: Any, worlds: int, inner: bool = False) -> None:
    """Every entry is an array of the worlds, or such infos again, with a mask; inner ones may go by the outer mask."""
    _require(isinstance(infos, dict), "infos", f"must be a dict, got {type(infos).__name__}")
    for key, value in infos.items():
        if key.startswith("_"):
            continue
        mask = infos.get(f"_{key}")
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (worlds,)
        _require(fits or (inner and mask is None), "infos", f"_{key} must be a mask, bool [{worlds}], got {mask!r}")
        if isinstance(value, dict):
            _check_infos(value, worlds, inner=True)
        else:
            fits = isinstance(value, np.ndarray) and len(value) == worlds
            _require(fits, "infos", f"{key} must be an array of {worlds}, one a world, got {value!r}")


def _require_same_histories(
    some: list[EnvHistory], others: list[EnvHistory], law: str, what: str, tolerance: float = 0.0
) -> None:
    """Two runs show every world in the same episodes, as far as both go."""
    for world, (a, b) in enumerate(zip(some, others, strict=True)):
        for number, (x, y) in enumerate(zip(a, b, strict=False)):
            for step, (one, other) in enumerate(zip(x, y, strict=False)):
                for name, left, right in zip(EnvStepRecord._fields, one, other, strict=True):
                    _require(
                        _equal(left, right, tolerance),
                        law,
                        f"{what} (world {world}, episode {number}, step {step}: {name} {left!r} against {right!r})",
                    )


def _equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[k], b[k], tolerance) for k in a)
    if isinstance(a, tuple | list):
        return (
            isinstance(b, tuple | list)
            and len(a) == len(b)
            and all(_equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if np.issubdtype(x.dtype, np.number) and tolerance:
        return bool(np.allclose(x.astype(np.float64), y.astype(np.float64), rtol=1e-5, atol=tolerance, equal_nan=True))
    return bool(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.inexact)))


def _first_record(observation: Any, infos: dict[str, Any], world: int) -> EnvStepRecord:
    return EnvStepRecord(observation, 0.0, False, False, select_env_info(infos, world))


def _episode_ended(life: EnvHistory) -> bool:
    return life[-1][-1].terminated or life[-1][-1].truncated


def _batch_actions(space: Space[Any], actions: list[Any]) -> Any:
    out: Any = create_empty_array(space, n=len(actions))
    return concatenate(space, actions, out)


def _iterate_arrays(data: Any) -> Iterator[NDArray[Any]]:
    """The arrays of numbers in nested data."""
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, np.ndarray) and data.dtype != object:
        yield data
    elif isinstance(data, tuple | list | np.ndarray):
        for item in data:
            yield from _iterate_arrays(item)


def _require(holds: bool, law: str, what: str) -> None:
    if not holds:
        raise AssertionError(f"{law}: {what}")
