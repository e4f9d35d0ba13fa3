"""MuZero's targets equal a reference that loops over time steps, for every position of an episode's end."""

from __future__ import annotations

import pytest
import torch
from muzero_agents import random_sequences

from vwm.rl.algorithms.muzero_targets import MuZeroTargetConfig, make_muzero_targets, value_prefix_targets


def reference_targets(reward, is_first, is_last, is_terminal, value, config):
    """Targets of one sequence, one time step at a time."""
    length = len(reward)
    ends = [is_last[t] or (t + 1 < length and is_first[t + 1]) for t in range(length)]
    end = next((t for t in range(length) if ends[t]), None)  # the end of the root's episode
    terminated = end is not None and is_terminal[end]
    targets = {name: [] for name in ("value", "value_mask", "policy_mask", "reward", "reward_mask", "observation_mask")}
    for k in range(config.unroll_steps + 1):
        before_end = end is None or k < end
        after_end = end is not None and k > end
        z, t, factor = 0.0, k, 1.0
        for _ in range(config.td_steps):
            if after_end or (end is not None and t >= end):
                break
            t += 1
            z += factor * reward[t]
            factor *= config.discount
        at_terminal = terminated and t >= end
        z += 0.0 if at_terminal or after_end else factor * value[t]
        targets["value"].append(z if before_end else 0.0)
        targets["value_mask"].append(float(before_end or terminated))
        targets["policy_mask"].append(float(before_end))
        if k:
            targets["reward"].append(0.0 if after_end else reward[k])
            targets["reward_mask"].append(float(not after_end or terminated))
            targets["observation_mask"].append(float(not after_end))
    return targets


@pytest.mark.parametrize(("unroll_steps", "td_steps"), [(5, 5), (3, 8), (8, 3), (1, 1)])
def test_targets_equal_the_reference(unroll_steps, td_steps):
    config = MuZeroTargetConfig(unroll_steps=unroll_steps, td_steps=td_steps, discount=0.9)
    *flags, policy, value = random_sequences(unroll_steps, unroll_steps + td_steps + 1)
    targets = make_muzero_targets(*flags, policy, value, config)
    for i in range(len(value)):
        expected = reference_targets(*(x[i].tolist() for x in (*flags, value)), config)
        for name, numbers in expected.items():
            assert getattr(targets, name)[i].tolist() == pytest.approx(numbers, abs=1e-12), (i, name)
        assert targets.policy_mask[i].tolist() == expected["policy_mask"]
        assert targets.action_valid[i].float().tolist() == expected["policy_mask"][:unroll_steps]
    assert torch.equal(targets.policy, policy[:, : unroll_steps + 1])


def small_targets(last: list[int], terminal: list[int]):
    """Targets of five time steps with rewards 0 to 4 and root values 10 to 50."""
    flags = [torch.tensor([[t in times for t in range(5)]]) for times in ([], last, terminal)]
    reward, value = torch.arange(5.0)[None], torch.tensor([[10.0, 20, 30, 40, 50]])
    config = MuZeroTargetConfig(unroll_steps=2, td_steps=2, discount=0.5)
    return make_muzero_targets(reward, *flags, torch.rand(1, 5, 2), value, config)


def test_within_an_episode_returns_bootstrap_after_td_steps():
    targets = small_targets([], [])
    assert targets.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5 + 40 / 4, 3 + 2 + 50 / 4]]
    assert targets.reward.tolist() == [[1, 2]] and targets.reward_mask.all() and targets.value_mask.all()


def test_terminal_states_have_value_zero():
    targets = small_targets([1], [1])
    assert targets.value.tolist() == [[1, 0, 0]] and targets.value_mask.tolist() == [[1, 1, 1]]
    assert targets.reward.tolist() == [[1, 0]] and targets.reward_mask.tolist() == [[1, 1]]
    assert targets.policy_mask.tolist() == [[1, 0, 0]] and targets.action_valid.tolist() == [[True, False]]
    assert targets.observation_mask.tolist() == [[1, 0]]


def test_truncated_episodes_bootstrap_from_their_last_root_and_have_no_targets_after_it():
    targets = small_targets([1], [])
    assert targets.value.tolist() == [[1 + 20 / 2, 0, 0]] and targets.value_mask.tolist() == [[1, 0, 0]]
    assert targets.reward.tolist() == [[1, 0]] and targets.reward_mask.tolist() == [[1, 0]]
    later = small_targets([3], [])
    assert later.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5 + 40 / 4, 3 + 40 / 2]]  # time step 4 is of another episode
    ended = small_targets([3], [3])
    assert ended.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5, 3]]


def test_value_prefixes_restart_at_the_horizon():
    assert value_prefix_targets(torch.tensor([[1.0, 2, 3, 4, 5]]), 2).tolist() == [[1, 3, 3, 7, 5]]
    assert value_prefix_targets(torch.tensor([[1.0, 2, 3]]), 5).tolist() == [[1, 3, 6]]
