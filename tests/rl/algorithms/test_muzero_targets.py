"""Targets are those of a slow loop over single moments, whatever ends where."""

from __future__ import annotations

import pytest
import torch

from vwm.rl.algorithms.muzero_targets import make_muzero_targets, value_prefix_targets


def slowly(reward, first, last, terminal, value, unroll, td, discount):
    """Of one piece: what is worth what, by walking from moment to moment."""
    length = len(reward)
    ends = [last[t] or (t + 1 < length and first[t + 1]) for t in range(length)]
    out = {"value": [], "value_mask": [], "going": [], "reward": [], "reward_mask": [], "observed": []}
    for k in range(unroll + 1):
        end = next((t for t in range(length) if ends[t]), None)  # the end of the root's episode
        past = end is not None and k > end
        ended = end is not None and k >= end and terminal[end]
        z, t, factor = 0.0, k, 1.0
        for _ in range(td):
            if past or (end is not None and t >= end):
                break
            t += 1
            z += factor * reward[t]
            factor *= discount
        dead = end is not None and t >= end and terminal[end]
        z += 0.0 if dead or past else factor * value[t]
        unknown = end is not None and k >= end and not terminal[end]
        out["value"].append(0.0 if ended or unknown else z)
        out["value_mask"].append(float(not unknown))
        out["going"].append(float(end is None or k < end))
        if k:
            out["reward"].append(0.0 if past else reward[k])
            out["reward_mask"].append(float(not past or terminal[end]))
            out["observed"].append(float(not past))
    return out


def play(seed: int, batch: int = 200, length: int = 12):
    """Pieces with ends of both kinds, and sometimes a beginning that no end came before."""
    g = torch.Generator().manual_seed(seed)
    last = torch.rand(batch, length, generator=g) < 0.15
    terminal = last & (torch.rand(batch, length, generator=g) < 0.5)
    first = torch.cat((torch.rand(batch, 1, generator=g) < 0.3, last[:, :-1]), dim=1)
    first |= torch.rand(batch, length, generator=g) < 0.02
    reward, value = torch.randn(2, batch, length, generator=g, dtype=torch.float64)
    policy = torch.rand(batch, length, 3, generator=g, dtype=torch.float64)
    return reward, first, last, terminal, policy, value


@pytest.mark.parametrize(("unroll", "td"), [(5, 5), (3, 8), (8, 3), (1, 1)])
def test_targets_are_those_of_a_slow_loop(unroll, td):
    reward, first, last, terminal, policy, value = play(unroll, length=unroll + td + 1)
    found = make_muzero_targets(reward, first, last, terminal, policy, value, unroll, td, 0.9)
    for i in range(len(reward)):
        told = (reward[i].tolist(), first[i].tolist(), last[i].tolist(), terminal[i].tolist(), value[i].tolist())
        expected = slowly(*told, unroll, td, 0.9)
        for name in ("value", "value_mask", "reward", "reward_mask", "observed"):
            assert getattr(found, name)[i].tolist() == pytest.approx(expected[name], abs=1e-12), (i, name)
        assert found.policy_mask[i].tolist() == expected["going"]
        assert found.acted[i].float().tolist() == expected["going"][:unroll]
    assert torch.equal(found.policy, policy[:, : unroll + 1])


def by_hand(last: list[int], terminal: list[int], root_values=(10.0, 20, 30, 40, 50)):
    """Five moments, unroll 2 and td 2, discount 1/2; reward[t] = t."""
    flags = [torch.tensor([[t in where for t in range(5)]]) for where in ([], last, terminal)]
    reward = torch.arange(5.0)[None]
    return make_muzero_targets(reward, *flags, torch.rand(1, 5, 2), torch.tensor([root_values]), 2, 2, 0.5)


def test_in_the_midst_of_an_episode_the_root_after_td_steps_counts():
    found = by_hand([], [])
    assert found.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5 + 40 / 4, 3 + 2 + 50 / 4]]
    assert found.reward.tolist() == [[1, 2]] and found.reward_mask.all() and found.value_mask.all()


def test_terminal_states_have_value_zero():
    found = by_hand([1], [1])
    assert found.value.tolist() == [[1, 0, 0]] and found.value_mask.tolist() == [[1, 1, 1]]
    assert found.reward.tolist() == [[1, 0]] and found.reward_mask.tolist() == [[1, 1]]
    assert found.policy_mask.tolist() == [[1, 0, 0]] and found.acted.tolist() == [[True, False]]
    assert found.observed.tolist() == [[1, 0]]


def test_an_episode_that_was_cut_off_trusts_its_last_root_and_asks_nothing_afterwards():
    found = by_hand([1], [])
    assert found.value.tolist() == [[1 + 20 / 2, 0, 0]] and found.value_mask.tolist() == [[1, 0, 0]]
    assert found.reward.tolist() == [[1, 0]] and found.reward_mask.tolist() == [[1, 0]]
    later = by_hand([3], [])
    assert later.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5 + 40 / 4, 3 + 40 / 2]]  # what comes after 3 is another's
    ended = by_hand([3], [3])
    assert ended.value.tolist() == [[1 + 1 + 30 / 4, 2 + 1.5, 3]]


def test_prefixes_begin_anew():
    assert value_prefix_targets(torch.tensor([[1.0, 2, 3, 4, 5]]), 2).tolist() == [[1, 3, 3, 7, 5]]
    assert value_prefix_targets(torch.tensor([[1.0, 2, 3]]), 5).tolist() == [[1, 3, 6]]
