"""The checker of vector environments accepts correct ones and detects each of these faults."""

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
    """A random walk from a random position: left, stay or right, plus noise. It terminates outside of -3..3."""

    observation_space = spaces.Box(-5, 5, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-2, 2), 0
        return self.observe(), {"from": self.position}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position += float(action) - 1 + self.np_random.uniform(-0.2, 0.2)
        self.steps += 1
        ended = abs(self.position) > 3
        return self.observe(), self.position, ended, self.steps >= self.limit, {"at": {"place": self.position}}

    def observe(self) -> Any:
        return np.array([self.position, self.steps / self.limit > 2], np.float32)


class CorrectVectorEnv(SyncVectorEnv):
    """Gymnasium's vector environment of walks; the classes below add one fault each."""

    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int, **kwargs: Any) -> None:
        super().__init__([lambda: Walk(limit)] * num_envs, autoreset_mode=mode, **kwargs)


def test_a_gymnasium_vector_of_cart_poles_passes() -> None:
    check_vector_env(
        lambda num_envs, autoreset_mode, max_episode_steps: SyncVectorEnv(
            [lambda: gymnasium.make("CartPole-v1", max_episode_steps=max_episode_steps)] * num_envs,
            autoreset_mode=autoreset_mode,
        ),
        max_episode_steps=12,
        steps=40,
    )


def test_correct_walks_pass_and_both_terminate_and_truncate() -> None:
    check_vector_env(CorrectVectorEnv)
    walks = CorrectVectorEnv(3, NEXT, 6)
    walks.reset(seed=0), walks.action_space.seed(0)
    ends = np.array([walks.step(walks.action_space.sample())[2:4] for _ in range(24)])
    assert ends[:, 0].any() and ends[:, 1].any()


class WrongMode(CorrectVectorEnv):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.metadata = {**self.metadata, "autoreset_mode": NEXT}


class WrongSpace(CorrectVectorEnv):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.observation_space = self.single_observation_space


class WideObservations(CorrectVectorEnv):
    def reset(self, **kwargs: Any) -> Any:
        observations, infos = super().reset(**kwargs)
        return observations.astype(np.float64), infos


class ObservationsOutOfBounds(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        observations, *rest = super().step(actions)
        return (observations * 3, *rest)


class IntegerRewards(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return (observations, rewards.astype(np.int64), *rest)


class FloatFlags(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, *rest = super().step(actions)
        return (observations, rewards, terminated.astype(np.float32), *rest)


class IgnoresSeeds(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(options=options)


class IgnoresLaterSeeds(CorrectVectorEnv):
    seeded = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seed, self.seeded = None if self.seeded else seed, True
        return super().reset(seed=seed, options=options)


class OneSeedForAll(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class IgnoresAllSeedsButTheFirst(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed[0] if isinstance(seed, list) else seed, options=options)


class ReseedsWithoutASeed(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        fresh = int(np.random.default_rng().integers(2**31)) if seed is None and not options else seed
        return super().reset(seed=fresh, options=options)


class CouplesWorlds(CorrectVectorEnv):
    """The first world's action moves the last world."""

    def step(self, actions: Any) -> Any:
        self.envs[-1].unwrapped.position += 0.01 * float(actions[0])  # type: ignore[attr-defined]
        return super().step(actions)


class StepsDuringTheReset(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        ended, outputs = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            for world in np.flatnonzero(ended):
                outputs[0][world] = self._env_obs[world] = self.envs[world].step(actions[world])[0]
        return outputs


class RewardsTheReset(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        ended, outputs = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            outputs[1][ended] = 1.0
        return outputs


class TerminatesInTheReset(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        ended, outputs = self._autoreset_envs.copy(), super().step(actions)
        if self.autoreset_mode is NEXT:
            outputs[2][ended] = True
        return outputs


class NeverResets(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        if self.autoreset_mode is NEXT:
            self._autoreset_envs[:] = False
        return super().step(actions)


class FinalObservationIsTheNextFirst(CorrectVectorEnv):
    """The most common fault: the new episode's first observation is returned as the old one's last."""

    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        for world in np.flatnonzero(outputs[4].get("_final_obs", [])):
            outputs[4]["final_obs"][world] = outputs[0][world].copy()
        return outputs


class NoFinalObservation(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        outputs[4].pop("final_obs", None)
        return outputs


class EmptyFinalInfo(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        if "final_info" in outputs[4]:
            outputs[4]["final_info"] = {}
        return outputs


class FinalObservationForAll(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        if "_final_obs" in outputs[4]:
            outputs[4]["_final_obs"][:] = True
        return outputs


class SkipsAStepInSameStep(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        for world in np.flatnonzero(outputs[4].get("_final_obs", [])):
            outputs[0][world] = self._env_obs[world] = self.envs[world].step(1)[0]
        return outputs


class IgnoresResetMasks(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class MaskedResetAdvancesOtherGenerators(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if options:
            self.envs[-1].unwrapped.np_random.uniform()
        return super().reset(seed=seed, options=options)


class MaskedResetKeepsTheStepCount(CorrectVectorEnv):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        early = options and self.envs[0].unwrapped.steps == 1  # type: ignore[attr-defined]
        outputs = super().reset(seed=seed, options=options)
        if early:
            self.envs[0].unwrapped.steps = 1  # type: ignore[attr-defined]
        return outputs


class ResetsInDisabledMode(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        for world in np.flatnonzero(self._autoreset_envs):
            if self.autoreset_mode is DISABLED:
                outputs[0][world] = self._env_obs[world] = self.envs[world].reset()[0]
        return outputs


class TimeLimitTerminates(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        return observations, rewards, terminated | truncated, truncated & False, infos


class TimeLimitIsLate(CorrectVectorEnv):
    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int) -> None:
        super().__init__(num_envs, mode, limit + 1)


class NoTimeLimit(CorrectVectorEnv):
    def __init__(self, num_envs: int, mode: AutoresetMode, limit: int) -> None:
        super().__init__(num_envs, mode, 10**6)
        for env in self.envs:
            env.unwrapped.step = lambda action, env=env: (env.unwrapped.observe(), 0.0, False, False, {})  # type: ignore


class InfosWithoutMasks(CorrectVectorEnv):
    def reset(self, **kwargs: Any) -> Any:
        observations, infos = super().reset(**kwargs)
        infos.pop("_from")
        return observations, infos


class InfosAsLists(CorrectVectorEnv):
    def reset(self, **kwargs: Any) -> Any:
        observations, infos = super().reset(**kwargs)
        return observations, {**infos, "from": infos["from"].tolist()}


class ReusesTheObservationBuffer(CorrectVectorEnv):
    """Gymnasium's own option ``copy=False``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, copy=False)


class ReusesTheRewardBuffer(CorrectVectorEnv):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reward_buffer = np.zeros(self.num_envs)

    def step(self, actions: Any) -> Any:
        outputs = super().step(actions)
        self.reward_buffer[:] = outputs[1]
        return (outputs[0], self.reward_buffer, *outputs[2:])


class ReadsReturnedObservations(CorrectVectorEnv):
    """It continues from the observation that it returned, which the caller may have changed."""

    returned: Any = None

    def reset(self, **kwargs: Any) -> Any:
        outputs = super().reset(**kwargs)
        self.returned = outputs[0]
        return outputs

    def step(self, actions: Any) -> Any:
        for env, observation in zip(self.envs, self.returned, strict=True):
            env.unwrapped.position = float(observation[0])  # type: ignore[attr-defined]
        outputs = super().step(actions)
        self.returned = outputs[0]
        return outputs


class ModifiesTheActions(CorrectVectorEnv):
    def step(self, actions: Any) -> Any:
        outputs = super().step(copy.copy(actions))
        actions[:] = 1
        return outputs


class FailsOnASecondClose(CorrectVectorEnv):
    def close(self, **kwargs: Any) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        super().close(**kwargs)


class DoesNotClose(CorrectVectorEnv):
    def close(self, **kwargs: Any) -> None:
        self.close_extras()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WrongMode, "spaces: metadata['autoreset_mode']"),
        (WrongSpace, "spaces: observation_space is"),
        (WideObservations, "spaces: observations are float64"),
        (ObservationsOutOfBounds, "spaces: observations are not in"),
        (IntegerRewards, "spaces: rewards must be"),
        (FloatFlags, "spaces: terminations must be"),
        (IgnoresSeeds, "seeding: two runs with one seed differ"),
        (IgnoresLaterSeeds, "seeding: two runs with one seed differ"),
        (OneSeedForAll, "seeding: the integer s must seed world i with s + i"),
        (IgnoresAllSeedsButTheFirst, "seeding: a world's first observation depends on more than its own seed"),
        (ReseedsWithoutASeed, "seeding: a reset without a seed must continue the generators"),
        (CouplesWorlds, "independence: what one world did"),
        (StepsDuringTheReset, "NEXT_STEP: the action of the step that resets"),
        (RewardsTheReset, "NEXT_STEP: world"),
        (TerminatesInTheReset, "NEXT_STEP: world"),
        (NeverResets, "NEXT_STEP: world"),
        (FinalObservationIsTheNextFirst, "SAME_STEP: SAME_STEP shows other episodes"),
        (NoFinalObservation, "SAME_STEP: final_obs and its mask"),
        (EmptyFinalInfo, "SAME_STEP: SAME_STEP shows other episodes"),
        (FinalObservationForAll, "SAME_STEP: final_obs and its mask"),
        (SkipsAStepInSameStep, "SAME_STEP: SAME_STEP shows other episodes"),
        (IgnoresResetMasks, "reset_mask: world"),
        (MaskedResetAdvancesOtherGenerators, "DISABLED: DISABLED shows other episodes"),
        (MaskedResetKeepsTheStepCount, "reset_mask: an episode that it began lasted 5 steps, its limit is 6"),
        (ResetsInDisabledMode, "DISABLED: DISABLED shows other episodes"),
        (TimeLimitTerminates, "time limit: another one may change nothing but truncated"),
        (TimeLimitIsLate, "time limit: world"),
        (NoTimeLimit, "time limit: no episode ended"),
        (InfosWithoutMasks, "infos: _from must be a mask"),
        (InfosAsLists, "infos: from must be an array"),
        (ReusesTheObservationBuffer, "ownership: an array that was returned has changed"),
        (ReusesTheRewardBuffer, "ownership: an array that was returned has changed"),
        (ReadsReturnedObservations, "ownership: writing into what was returned"),
        (ModifiesTheActions, "actions: step changed"),
        (FailsOnASecondClose, "closing: the second close()"),
        (DoesNotClose, "closing: closed is not True"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_fault_is_detected_and_reported(fault: type[CorrectVectorEnv], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_vector_env(fault)


def test_numbers_may_differ_within_the_tolerance() -> None:
    class RoundsDifferently(CorrectVectorEnv):
        """Observations with a small error that depends on the mode."""

        def step(self, actions: Any) -> Any:
            observations, *rest = super().step(actions)
            return (observations + np.float32(1e-5 * (self.autoreset_mode is SAME)), *rest)

    with pytest.raises(AssertionError, match="SAME_STEP shows other episodes"):
        check_vector_env(RoundsDifferently)
    check_vector_env(RoundsDifferently, tolerance=1e-4)


def test_rejects_checks_with_too_few_worlds_or_steps() -> None:
    with pytest.raises(ValueError, match="num_envs=1 must be 2 or more"):
        check_vector_env(CorrectVectorEnv, num_envs=1)
    with pytest.raises(ValueError, match="steps=10 last for two episodes: 14 or more"):
        check_vector_env(CorrectVectorEnv, steps=10)
