"""Procgen as an environment of agents: every episode is its seed's, and what is played is what is recorded."""

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
    seen = [[env.reset(seed=7)[0], *(env.step(RIGHT)[0] for _ in range(20))] for env in (first, second)]
    assert np.array_equal(*seen) and not np.array_equal(seen[0][0], first.reset(seed=8)[0])
    assert not np.array_equal(first.reset()[0], first.reset()[0])  # without a seed the luck goes on
    assert first.get_action_meanings()[RIGHT] == "RIGHT" and first.action_space.n == 15
    first.close()
    second.close()


def test_it_is_the_game_that_is_recorded() -> None:
    """The same level under the same actions, with no luck in it: a level is its pictures' whole story."""
    options = {"num_levels": 1, "start_level": 5, "distribution_mode": "easy", "use_backgrounds": False}
    recorded = make_recording_env("procgen:coinrun", ShardAssignment(0, 1, seed=0), 64, options=options)
    played = make_env("procgen:coinrun", options)
    shown, _ = played.reset(seed=3)
    names = list(recorded.actions.names)
    assert names == played.get_action_meanings()
    time_step = recorded.reset()
    for action in [names.index("RIGHT")] * 8 + [names.index("RIGHT+UP")] * 4:
        assert np.array_equal(time_step.observation[0], shown)
        time_step = recorded.step(torch.full((recorded.count,), action))
        shown, reward, terminated, truncated, _ = played.step(action)
        assert reward == time_step.reward[0] and terminated == time_step.is_terminal[0]
        assert (terminated or truncated) == time_step.is_last[0]
    recorded.close()
    played.close()


def test_an_agent_sees_ends_and_goes_on_exactly() -> None:
    game = GymnasiumEnvSpec("procgen:coinrun", options={"num_levels": 3, "distribution_mode": "easy"})
    worlds, other = game.open(2, seed=0), game.open(2, seed=0)
    moment, ends = worlds.reset(), 0
    actions = torch.randint(6, 9, (300, 2), generator=torch.Generator().manual_seed(0))  # jump on to the right
    for action in actions:
        moment = worlds.step(action)
        ends += int(moment.is_terminal.sum())
    assert ends and torch.equal(moment.is_terminal, moment.is_last)
    again = other.load_state_dict(worlds.state_dict())
    for action in actions[:20]:
        assert all(torch.equal(a, b) for a, b in zip(moment, again, strict=True))
        moment, again = worlds.step(action), other.step(action)
    worlds.close()
    other.close()


def test_procgens_own_limit_is_no_end_of_the_world() -> None:
    env = make_env("procgen:coinrun", {"num_levels": 1, "distribution_mode": "easy"})
    env.reset(seed=0)
    outcomes = [env.step(4)[2:4] for _ in range(1000)]  # stands still
    assert outcomes[-1] == (False, True) and not any(map(any, outcomes[:-1]))
    env.close()


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="procgen:color: there is no such game, only bigfish"):
        make_env("procgen:color", {})
    with pytest.raises(ValueError, match=r"procgen:coinrun with options .*color"):
        make_env("procgen:coinrun", {"color": 1})
