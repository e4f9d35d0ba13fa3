"""A conformance test for Gymnasium's ``VectorEnv``; Gymnasium checks single environments and has none for these.

    check_vector_env(
        lambda num_envs, autoreset_mode, max_episode_steps: SimulatorVectorEnv(
            simulator, num_envs, max_episode_steps=max_episode_steps, autoreset_mode=autoreset_mode
        )
    )

The idea: with equal seeds and actions, the worlds of a batch must have equal episodes in every autoreset mode, whatever
the actions in other worlds are, under a longer time limit, and when the caller writes into returned arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium.spaces import Space
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from vwm.worlds.vector_env_history import (
    ActionChooser,
    AnyVectorEnv,
    EnvHistory,
    EnvHistoryRecorder,
    require_invariant,
    require_same_histories,
    values_equal,
)


class VectorEnvFactory(Protocol):
    """Makes the environments under test, the same ones in every call."""

    def __call__(self, num_envs: int, autoreset_mode: AutoresetMode, max_episode_steps: int) -> AnyVectorEnv:
        """Make ``num_envs`` worlds in a mode, with episodes truncated after ``max_episode_steps``."""


def check_vector_env(
    make: VectorEnvFactory,
    num_envs: int = 3,
    max_episode_steps: int = 6,
    steps: int = 24,
    seed: int = 0,
    tolerance: float = 0.0,
) -> None:
    """Check the invariants of Gymnasium's vector interface.

    It checks the spaces, and that everything returned lies in them; the seeds (equal seeds give equal runs, and the
    integer s seeds world i with s + i); that worlds are independent of each other; the three autoreset modes; that a
    time limit truncates and does not terminate; infos and their masks; that returned arrays belong to the caller;
    closing.

    Args:
        make: makes environments, of several worlds, each a function of its seed and its actions.
        num_envs: worlds in a batch, 2 or more.
        max_episode_steps: time limit of the episodes. Terminations are only checked where random actions cause some
            within it.
        steps: length of the runs; several episodes.
        seed: of worlds and actions.
        tolerance: largest difference (plus 1e-5 of their size) of two numbers that should be equal but were computed in
            different batches, where floating-point sums may round differently; 0 requires equality. Repeated equal runs
            must be equal bit by bit.

    Raises:
        AssertionError: an invariant is violated; the message names it and the place.
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

    def chooser(self, space: Space[Any], changed_worlds: Sequence[int] = (), idle: int = 0) -> ActionChooser:
        """Choose actions by world, episode and step alone; different ones in ``changed_worlds``, or when idle."""
        space = copy.deepcopy(space)

        def choose(world: int, episode: int, step: int) -> Any:
            key = [self.seed, world, episode, step + 1, int(world in changed_worlds), idle if step < 0 else 0]
            space.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            return space.sample()

        return choose

    def record_histories(self, mode: AutoresetMode, limit: int | None = None, **options: Any) -> list[EnvHistory]:
        """Record the histories of new worlds."""
        with self.open(mode, limit) as envs:
            return self.record_histories_in(envs, mode, **options)

    def reference(self, mode: AutoresetMode) -> list[EnvHistory]:
        """Return the histories that other runs are compared with."""
        if mode not in self.reference_histories:
            self.reference_histories[mode] = self.record_histories(mode)
        return self.reference_histories[mode]

    def extra_seeds(self) -> list[int]:
        """Return seeds to try for checks that need an episode that does not terminate early."""
        return [self.seed + i * self.num_envs for i in range(self.steps)]

    def record_histories_in(
        self,
        envs: AnyVectorEnv,
        mode: AutoresetMode,
        seed: int | list[int | None] | None = -1,
        changed_worlds: Sequence[int] = (),
        idle: int = 0,
        overwrite_returned: bool = False,
        steps: int | None = None,
    ) -> list[EnvHistory]:
        """Reset the worlds and step them.

        Args:
            envs: the worlds.
            mode: their autoreset mode.
            seed: of the reset; -1 takes the trial's seed.
            changed_worlds: worlds that get other actions.
            idle: varies the actions that NEXT_STEP must ignore.
            overwrite_returned: write into returned arrays.
            steps: by default those of the trial.
        """
        recorder = EnvHistoryRecorder(envs, mode, overwrite_returned)
        recorder.reset(seed=self.seed if seed == -1 else seed)
        choose = self.chooser(envs.single_action_space, changed_worlds, idle)
        for _ in range(self.steps if steps is None else steps):
            recorder.step(choose)
        recorder.check_returned_unchanged()
        return recorder.histories


def _check_spaces(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    with trial.open(mode) as envs:
        require_invariant(
            envs.num_envs == trial.num_envs, "spaces", f"num_envs is {envs.num_envs}, asked for {trial.num_envs}"
        )
        stated = envs.metadata.get("autoreset_mode")
        require_invariant(stated is mode, "spaces", f"metadata['autoreset_mode'] is {stated}, asked for {mode}")
        for name in ("observation_space", "action_space"):
            space, single = getattr(envs, name), getattr(envs, f"single_{name}")
            batched = batch_space(single, trial.num_envs)
            fits = is_space_dtype_shape_equiv(space, batched)
            require_invariant(fits, "spaces", f"{name} is {space}, but a batch of single_{name} is {batched}")


def _check_reproducibility(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    reference = trial.reference(mode)
    ends = any(len(history) > 1 for history in reference)
    require_invariant(ends, "time limit", f"no episode ended within {trial.steps} steps, their limit is {trial.limit}")
    with trial.open(mode) as envs:
        trial.record_histories_in(envs, mode, seed=trial.seed + 1)
        repeated = trial.record_histories_in(envs, mode)
    require_same_histories(reference, repeated, "seeding", f"two runs with one seed differ, {mode}")


def _check_ownership(trial: _ConformanceTrial, mode: AutoresetMode) -> None:
    what = f"writing into what was returned changed what came later: return copies, {mode}"
    require_same_histories(
        trial.reference(mode), trial.record_histories(mode, overwrite_returned=True), "ownership", what
    )


def _check_seeds(trial: _ConformanceTrial) -> None:
    mode, s, n = AutoresetMode.NEXT_STEP, trial.seed, trial.num_envs
    listed = trial.record_histories(mode, seed=[s + i for i in range(n)])
    require_same_histories(
        trial.reference(mode), listed, "seeding", "the integer s must seed world i with s + i, as a list of them does"
    )
    runs = []
    for _ in range(2):
        with trial.open() as envs:
            rotated = EnvHistoryRecorder(envs, mode)
            rotated.reset(seed=[s + (i + 1) % n for i in range(n)])
            trial.record_histories_in(envs, mode)
            runs.append(trial.record_histories_in(envs, mode, seed=None))
    require_same_histories(
        runs[0],
        runs[1],
        "seeding",
        "a reset without a seed must continue the generators, but two equal runs differ",
    )
    for world, history in enumerate(rotated.histories):
        expected = trial.reference(mode)[(world + 1) % n][0][:1]
        what = "a world's first observation depends on more than its own seed"
        require_same_histories([history], [[expected]], "seeding", what, trial.tolerance)


def _check_independence(trial: _ConformanceTrial) -> None:
    """Check that actions and ends of episodes in the first world leave the others unchanged."""
    mode = AutoresetMode.NEXT_STEP
    reference, changed = trial.reference(mode)[1:], trial.record_histories(mode, changed_worlds=(0,))[1:]
    require_same_histories(
        reference,
        changed,
        "independence",
        "what one world did changed another (worlds counted from 1)",
        trial.tolerance,
    )


def _check_autoreset_modes(trial: _ConformanceTrial) -> None:
    next_step = trial.reference(AutoresetMode.NEXT_STEP)
    idle = trial.record_histories(AutoresetMode.NEXT_STEP, idle=1)
    require_same_histories(
        next_step, idle, "NEXT_STEP", "the action of the step that resets a world must be ignored", trial.tolerance
    )
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        what = f"{mode.name} shows other episodes than NEXT_STEP"
        require_same_histories(next_step, trial.reference(mode), mode.name, what, trial.tolerance)


def _check_time_limit(trial: _ConformanceTrial) -> None:
    mode = AutoresetMode.DISABLED
    for world, history in enumerate(trial.reference(mode)):
        for episode in history:
            for step, record in enumerate(episode):
                fits = step <= trial.limit and (record.truncated == (step == trial.limit) or record.terminated)
                what = f"world {world} has truncated={record.truncated} after {step} steps, its limit is {trial.limit}"
                require_invariant(fits, "time limit", what)
    for seed in trial.extra_seeds():
        short, long = (
            trial.record_histories(mode, limit, seed=seed, steps=trial.limit)
            for limit in (trial.limit, 2 * trial.limit)
        )
        for world, histories in enumerate(zip(short, long, strict=True)):
            for one, other in zip(histories[0][0], histories[1][0], strict=False):
                what = f"another one may change nothing but truncated, but world {world} shows {one} and {other}"
                require_invariant(
                    values_equal(one._replace(truncated=other.truncated), other, trial.tolerance), "time limit", what
                )
        if any(len(history[0]) > trial.limit and not history[0][-1].terminated for history in long):
            break  # a world passed the limit


def _check_partial_reset(trial: _ConformanceTrial) -> None:
    """Check that resetting the first world in mid-episode leaves the others unchanged and restarts its time limit."""
    reference = trial.reference(AutoresetMode.DISABLED)[1:]
    after_reset = _histories_with_partial_reset(trial, trial.seed, trial.steps)[1:]
    require_same_histories(
        reference, after_reset, "reset_mask", "a world that was not to be reset was disturbed", trial.tolerance
    )
    for seed in trial.extra_seeds():
        restarted = _histories_with_partial_reset(trial, seed, trial.limit + 1)[0][1]
        fits = len(restarted) == trial.limit + 1 or restarted[-1].terminated
        what = f"an episode that it began lasted {len(restarted) - 1} steps, its limit is {trial.limit}"
        require_invariant(fits, "reset_mask", what)
        if not restarted[-1].terminated:
            break  # the time limit was reached


def _histories_with_partial_reset(trial: _ConformanceTrial, seed: int, steps: int) -> list[EnvHistory]:
    """Record histories in which the first world was reset after one step."""
    with trial.open(AutoresetMode.DISABLED) as envs:
        recorder, choose = EnvHistoryRecorder(envs, AutoresetMode.DISABLED), trial.chooser(envs.single_action_space)
        recorder.reset(seed=seed)
        recorder.step(choose)
        recorder.reset_masked(np.arange(trial.num_envs) == 0)
        for _ in range(steps - 1):
            recorder.step(choose)
    return recorder.histories


def _check_close(trial: _ConformanceTrial) -> None:
    with trial.open() as envs:
        envs.reset(seed=trial.seed)
        for time in ("first", "second"):
            try:
                envs.close()
            except Exception as error:
                raise AssertionError(f"closing: the {time} close() raised {error!r}") from error
        require_invariant(envs.closed, "closing", "closed is not True after close()")
