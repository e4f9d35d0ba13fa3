"""The checker of vector environments: it passes sound ones, and finds each of these faults."""

from __future__ import annotations

import copy
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vwm.worlds.vector_env_conformance import check_vector_env

NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


class Walk(gymnasium.Env[Any, Any]):
    """A place on a line, drawn at the start; left, stay or right, and some wind. It ends outside of -3..3."""

    observation_space = spaces.Box(-5, 5, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-2, 2), 0
        return self.shown(), {"from": self.place}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += float(action) - 1 + self.np_random.uniform(-0.2, 0.2)
        self.steps += 1
        ended = abs(self.place) > 3
        return self.shown(), self.place, ended, self.steps >= self.limit, {"at": {"place": self.place}}

    def shown(self) -> Any:
        return np.array([self.place, self.steps / self.limit > 2], np.float32)


class Sound(SyncVectorEnv):
    """Gymnasium's own, over walks; the faults below are made in it."""

    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int, **how: Any) -> None:
        super().__init__([lambda: Walk(limit)] * num_envs, autoreset_mode=mode, **how)


def test_gymnasiums_own_vector_of_cart_poles_passes() -> None:
    check_vector_env(
        lambda num_envs, autoreset_mode, max_episode_steps: SyncVectorEnv(
            [lambda: gymnasium.make("CartPole-v1", max_episode_steps=max_episode_steps)] * num_envs,
            autoreset_mode=autoreset_mode,
        ),
        max_episode_steps=12,
        steps=40,
    )


def test_walks_pass_and_they_end_both_ways() -> None:
    check_vector_env(Sound)
    walks = Sound(3, NEXT, 6)
    walks.reset(seed=0), walks.action_space.seed(0)
    ends = np.array([walks.step(walks.action_space.sample())[2:4] for _ in range(24)])
    assert ends[:, 0].any() and ends[:, 1].any()


class WrongMode(Sound):
    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self.metadata = {**self.metadata, "autoreset_mode": NEXT}


class WrongSpace(Sound):
    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self.observation_space = self.single_observation_space


class WideObservations(Sound):
    def reset(self, **how: Any) -> Any:
        observations, infos = super().reset(**how)
        return observations.astype(np.float64), infos


class ObservationsOutside(Sound):
    def step(self, actions: Any) -> Any:
        observations, *rest = super().step(actions)
        return (observations * 3, *rest)


class IntegerRewards(Sound):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return (observations, rewards.astype(np.int64), *rest)


class FloatFlags(Sound):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, *rest = super().step(actions)
        return (observations, rewards, terminated.astype(np.float32), *rest)


class DeafToSeeds(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(options=options)


class SeedsOnce(Sound):
    seeded = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seed, self.seeded = None if self.seeded else seed, True
        return super().reset(seed=seed, options=options)


class OneSeedForAll(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class FirstSeedAlone(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed[0] if isinstance(seed, list) else seed, options=options)


class FreshRandomnessWithoutASeed(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        fresh = int(np.random.default_rng().integers(2**31)) if seed is None and not options else seed
        return super().reset(seed=fresh, options=options)


class Neighbors(Sound):
    """The last world is pushed by the first one's action."""

    def step(self, actions: Any) -> Any:
        self.envs[-1].unwrapped.place += 0.01 * float(actions[0])  # type: ignore[attr-defined]
        return super().step(actions)


class StepsInTheReset(Sound):
    def step(self, actions: Any) -> Any:
        ended, shown = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            for world in np.flatnonzero(ended):
                shown[0][world] = self._env_obs[world] = self.envs[world].step(actions[world])[0]
        return shown


class RewardInTheReset(Sound):
    def step(self, actions: Any) -> Any:
        ended, shown = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            shown[1][ended] = 1.0
        return shown


class EndsInTheReset(Sound):
    def step(self, actions: Any) -> Any:
        ended, shown = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            shown[2][ended] = True
        return shown


class NeverResets(Sound):
    def step(self, actions: Any) -> Any:
        if self.autoreset_mode is NEXT:
            self._autoreset_envs[:] = False
        return super().step(actions)


class FinalIsFirst(Sound):
    """The commonest fault: the new episode's observation is handed out as the old one's last."""

    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        for world in np.flatnonzero(shown[4].get("_final_obs", [])):
            shown[4]["final_obs"][world] = shown[0][world].copy()
        return shown


class NoFinal(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        shown[4].pop("final_obs", None)
        return shown


class EmptyFinalInfo(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        if "final_info" in shown[4]:
            shown[4]["final_info"] = {}
        return shown


class FinalForAll(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        if "_final_obs" in shown[4]:
            shown[4]["_final_obs"][:] = True
        return shown


class SameStepSkipsAStep(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        for world in np.flatnonzero(shown[4].get("_final_obs", [])):
            shown[0][world] = self._env_obs[world] = self.envs[world].step(1)[0]
        return shown


class DeafToMasks(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class MaskTurnsTheOthers(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if options:
            self.envs[-1].unwrapped.np_random.uniform()
        return super().reset(seed=seed, options=options)


class ClockRunsOn(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        early = options and self.envs[0].unwrapped.steps == 1  # type: ignore[attr-defined]
        shown = super().reset(seed=seed, options=options)
        if early:
            self.envs[0].unwrapped.steps = 1  # type: ignore[attr-defined]
        return shown


class ResetsThoughDisabled(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        for world in np.flatnonzero(self._autoreset_envs):
            if self.autoreset_mode is DISABLED:
                shown[0][world] = self._env_obs[world] = self.envs[world].reset()[0]
        return shown


class LimitTerminates(Sound):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        return observations, rewards, terminated | truncated, truncated & False, infos


class LateLimit(Sound):
    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int) -> None:
        super().__init__(num_envs, mode, limit + 1)


class NoLimit(Sound):
    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int) -> None:
        super().__init__(num_envs, mode, 10**6)
        for env in self.envs:
            env.unwrapped.step = lambda action, env=env: (env.unwrapped.shown(), 0.0, False, False, {})  # type: ignore


class NoMasks(Sound):
    def reset(self, **how: Any) -> Any:
        observations, infos = super().reset(**how)
        infos.pop("_from")
        return observations, infos


class ListOfInfos(Sound):
    def reset(self, **how: Any) -> Any:
        observations, infos = super().reset(**how)
        return observations, {**infos, "from": infos["from"].tolist()}


class OneBuffer(Sound):
    """Gymnasium's own option, against which it warns."""

    def __init__(self, *what: Any) -> None:
        super().__init__(*what, copy=False)


class HandsOutItsRewards(Sound):
    def __init__(self, *what: Any) -> None:
        super().__init__(*what)
        self.earned = np.zeros(self.num_envs)

    def step(self, actions: Any) -> Any:
        shown = super().step(actions)
        self.earned[:] = shown[1]
        return (shown[0], self.earned, *shown[2:])


class BelievesTheCaller(Sound):
    """It goes on from the observation that it handed out."""

    given: Any = None

    def reset(self, **how: Any) -> Any:
        shown = super().reset(**how)
        self.given = shown[0]
        return shown

    def step(self, actions: Any) -> Any:
        for env, observation in zip(self.envs, self.given, strict=True):
            env.unwrapped.place = float(observation[0])  # type: ignore[attr-defined]
        shown = super().step(actions)
        self.given = shown[0]
        return shown


class ClipsTheActions(Sound):
    def step(self, actions: Any) -> Any:
        shown = super().step(copy.copy(actions))
        actions[:] = 1
        return shown


class ClosesOnce(Sound):
    def close(self, **how: Any) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        super().close(**how)


class StaysOpen(Sound):
    def close(self, **how: Any) -> None:
        self.close_extras()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WrongMode, "spaces: metadata['autoreset_mode']"),
        (WrongSpace, "spaces: observation_space is"),
        (WideObservations, "spaces: observations are float64"),
        (ObservationsOutside, "spaces: observations are not in"),
        (IntegerRewards, "spaces: rewards must be"),
        (FloatFlags, "spaces: terminations must be"),
        (DeafToSeeds, "seeding: two runs with one seed differ"),
        (SeedsOnce, "seeding: two runs with one seed differ"),
        (OneSeedForAll, "seeding: the integer s must seed world i with s + i"),
        (FirstSeedAlone, "seeding: a world's first observation depends on more than its own seed"),
        (FreshRandomnessWithoutASeed, "seeding: a reset without a seed must continue the generators"),
        (Neighbors, "independence: what one world did"),
        (StepsInTheReset, "NEXT_STEP: the action of the step that resets"),
        (RewardInTheReset, "NEXT_STEP: world"),
        (EndsInTheReset, "NEXT_STEP: world"),
        (NeverResets, "NEXT_STEP: world"),
        (FinalIsFirst, "SAME_STEP: SAME_STEP shows other episodes"),
        (NoFinal, "SAME_STEP: final_obs and its mask"),
        (EmptyFinalInfo, "SAME_STEP: SAME_STEP shows other episodes"),
        (FinalForAll, "SAME_STEP: final_obs and its mask"),
        (SameStepSkipsAStep, "SAME_STEP: SAME_STEP shows other episodes"),
        (DeafToMasks, "reset_mask: world"),
        (MaskTurnsTheOthers, "DISABLED: DISABLED shows other episodes"),
        (ClockRunsOn, "reset_mask: an episode that it began lasted 5 steps, its limit is 6"),
        (ResetsThoughDisabled, "DISABLED: DISABLED shows other episodes"),
        (LimitTerminates, "time limit: another one may change nothing but truncated"),
        (LateLimit, "time limit: world"),
        (NoLimit, "time limit: no episode ended"),
        (NoMasks, "infos: _from must be a mask"),
        (ListOfInfos, "infos: from must be an array"),
        (OneBuffer, "ownership: an array that was returned has changed"),
        (HandsOutItsRewards, "ownership: an array that was returned has changed"),
        (BelievesTheCaller, "ownership: writing into what was returned"),
        (ClipsTheActions, "actions: step changed"),
        (ClosesOnce, "closing: the second close()"),
        (StaysOpen, "closing: closed is not True"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_fault_is_detected_and_reported(fault: type[Sound], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_vector_env(fault)


def test_numbers_may_differ_within_the_tolerance_that_is_asked_for() -> None:
    class Rounds(Sound):
        """It is off a little, depending on the mode."""

        def step(self, actions: Any) -> Any:
            observations, *rest = super().step(actions)
            return (observations + np.float32(1e-5 * (self.autoreset_mode is SAME)), *rest)

    with pytest.raises(AssertionError, match="SAME_STEP shows other episodes"):
        check_vector_env(Rounds)
    check_vector_env(Rounds, tolerance=1e-4)


def test_rejects_a_check_without_steps() -> None:
    with pytest.raises(ValueError, match="num_envs=1 must be 2 or more"):
        check_vector_env(Sound, num_envs=1)
    with pytest.raises(ValueError, match="steps=10 last for two episodes: 14 or more"):
        check_vector_env(Sound, steps=10)
