"""Procgen as an environment: episodes are functions of their seeds, and equal those of a recording."""

import numpy as np
import pytest
import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.env_ids import make_env
from vwm.envs.recording_envs import ShardAssignment, make_recording_env

pytest.importorskip("gym3", reason="Procgen is not installed")

RIGHT = 7


def test_an_episode_is_a_function_of_its_seed() -> None:
    first, second = (make_env("procgen:coinrun", {"distribution_mode": "easy"}) for _ in range(2))
    second.reset(seed=1)
    for action in (RIGHT, 8, 8):
        second.step(action)
    trajectories = [[env.reset(seed=7)[0], *(env.step(RIGHT)[0] for _ in range(20))] for env in (first, second)]
    assert np.array_equal(*trajectories) and not np.array_equal(trajectories[0][0], first.reset(seed=8)[0])
    assert not np.array_equal(first.reset()[0], first.reset()[0])  # without a seed the generator continues
    assert first.get_action_meanings()[RIGHT] == "RIGHT" and first.action_space.n == 15
    first.close()
    second.close()


def test_the_environment_equals_the_recorded_one() -> None:
    """Compare the same level under the same actions, without randomness beyond the level."""
    options = {"num_levels": 1, "start_level": 5, "distribution_mode": "easy", "use_backgrounds": False}
    recorded = make_recording_env("procgen:coinrun", ShardAssignment(0, 1, seed=0), 64, options=options)
    env = make_env("procgen:coinrun", options)
    observation, _ = env.reset(seed=3)
    names = list(recorded.actions.names)
    assert names == env.get_action_meanings()
    time_step = recorded.reset()
    for action in [names.index("RIGHT")] * 8 + [names.index("RIGHT+UP")] * 4:
        assert np.array_equal(time_step.observation[0], observation)
        time_step = recorded.step(torch.full((recorded.count,), action))
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == time_step.reward[0] and terminated == time_step.is_terminal[0]
        assert (terminated or truncated) == time_step.is_last[0]
    recorded.close()
    env.close()


def test_batched_environments_terminate_and_a_restored_state_continues_exactly() -> None:
    spec = GymnasiumEnvSpec("procgen:coinrun", options={"num_levels": 3, "distribution_mode": "easy"})
    envs, restored = spec.open(2, seed=0), spec.open(2, seed=0)
    time_step, terminations = envs.reset(), 0
    actions = torch.randint(6, 9, (300, 2), generator=torch.Generator().manual_seed(0))  # run or jump to the right
    for action in actions:
        time_step = envs.step(action)
        terminations += int(time_step.is_terminal.sum())
    assert terminations and torch.equal(time_step.is_terminal, time_step.is_last)
    restored_time_step = restored.load_state_dict(envs.state_dict())
    for action in actions[:20]:
        assert all(torch.equal(a, b) for a, b in zip(time_step, restored_time_step, strict=True))
        time_step, restored_time_step = envs.step(action), restored.step(action)
    envs.close()
    restored.close()


def test_the_time_limit_of_procgen_truncates() -> None:
    env = make_env("procgen:coinrun", {"num_levels": 1, "distribution_mode": "easy"})
    env.reset(seed=0)
    outcomes = [env.step(4)[2:4] for _ in range(1000)]  # stands still
    assert outcomes[-1] == (False, True) and not any(map(any, outcomes[:-1]))
    env.close()


def test_rejects_unknown_games_and_options() -> None:
    with pytest.raises(ValueError, match="procgen:color: there is no such game, only bigfish"):
        make_env("procgen:color", {})
    with pytest.raises(ValueError, match=r"procgen:coinrun with options .*color"):
        make_env("procgen:coinrun", {"color": 1})
