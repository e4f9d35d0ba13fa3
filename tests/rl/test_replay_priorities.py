"""Prioritized replay: the tree equals running sums, and whole sequences are drawn as often as they should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from replay_steps import EXTRAS, NUM_ENVS, SPACES, fill

from vwm.rl.replay_buffer import ReplayBuffer
from vwm.rl.replay_priorities import SMALLEST_PRIORITY, ReplayPriorities, SequencePriorities, SumTree


@pytest.mark.parametrize("count", [1, 2, 7, 64, 100])
def test_the_tree_finds_what_running_sums_find(count: int) -> None:
    rng = np.random.default_rng(count)
    tree, leaves = SumTree(count), np.zeros(count)
    for _ in range(20):
        indices = rng.integers(count, size=9)  # some are equal
        values = rng.integers(0, 5, size=9).astype(float)
        tree.write(indices, values)
        leaves[indices] = values
        np.testing.assert_array_equal(tree.leaves, leaves)
        assert tree.total == leaves.sum()
        if leaves.sum():
            sums = np.arange(leaves.sum())
            np.testing.assert_array_equal(tree.find(sums), np.searchsorted(leaves.cumsum(), sums, side="right"))


def test_rounding_never_finds_a_leaf_of_zero() -> None:
    tree = SumTree(8)
    tree.write(np.arange(8), np.array([0.1, 0.2, 0, 0.3, 0, 0, 0, 0]))
    assert tree.find(np.array([tree.total, 2 * tree.total, 0.1 + 0.2, 0.3])).tolist() == [3, 3, 3, 1]


def make_replay(capacity: int = 60, length: int = 5, root: int = 1, exponent: float = 0.6) -> ReplayBuffer:
    priorities = SequencePriorities(NUM_ENVS, capacity // NUM_ENVS, length, root, ReplayPriorities(exponent))
    return ReplayBuffer(capacity, NUM_ENVS, SPACES, EXTRAS, seed=1, priorities=priorities)


@pytest.mark.parametrize("added", [5, 20, 21, 53])
def test_exactly_the_whole_sequences_are_drawn(added: int) -> None:
    replay = make_replay()
    fill(replay, 0, added)
    batch = replay.sample_by_priority(600)
    times, env_indices = batch.observation.unbind(-1)
    assert (times.diff(dim=1) == 1).all() and (env_indices.diff(dim=1) == 0).all()
    assert set(times[:, 0].tolist()) == set(range(max(0, added - 20), added - 4))
    assert set(env_indices[:, 0].tolist()) == {0, 1, 2}
    torch.testing.assert_close(batch.extras["relative_probability"], torch.ones(600))  # none was learned from yet


def test_sequences_are_drawn_in_proportion_to_the_powers_of_their_priorities() -> None:
    replay = make_replay()
    fill(replay, 0, 20)
    batch = replay.sample_by_priority(400)
    roots = batch.observation[:, 1]  # (time, environment) of the roots
    replay.update_priorities(batch, 1 + roots[:, 0] + 20 * roots[:, 1])
    drawn = replay.sample_by_priority(40_000)
    counts = np.zeros((20, NUM_ENVS))
    for time, env in drawn.observation[:, 1].long().tolist():
        counts[time, env] += 1
    priorities = 1 + np.arange(20)[:, None] + 20 * np.arange(NUM_ENVS)
    expected = np.where((np.arange(20) >= 1)[:, None] & (np.arange(20) < 17)[:, None], priorities, 0) ** 0.6
    expected /= expected.sum()
    np.testing.assert_allclose(counts / 40_000, expected, atol=0.004)
    relative = expected * np.count_nonzero(expected)
    times, envs = drawn.observation[:, 1].long().unbind(1)
    np.testing.assert_allclose(drawn.extras["relative_probability"].numpy(), relative[times, envs], rtol=1e-5)
    # A new sequence has the highest priority so far.
    fill(replay, 20, 21)
    highest = (1 + 16 + 40 + SMALLEST_PRIORITY) ** 0.6
    assert replay.priorities is not None
    assert replay.priorities.tree.leaves.max() == pytest.approx(highest)
    assert np.isclose(replay.priorities.tree.leaves, highest).sum() == NUM_ENVS + 1


def test_a_loaded_buffer_draws_what_the_saved_one_draws(tmp_path: Path) -> None:
    replay, loaded = make_replay(), make_replay()
    assert replay.priorities is not None
    fill(replay, 0, 33)
    batch = replay.sample_by_priority(50)
    replay.update_priorities(batch, torch.rand(50, generator=torch.Generator().manual_seed(0)) * 3)
    loaded.load(tmp_path, replay.save(tmp_path))
    for buffer in (replay, loaded):
        fill(buffer, 33, 40)
    ours, theirs = replay.sample_by_priority(50), loaded.sample_by_priority(50)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.extras["relative_probability"], theirs.extras["relative_probability"])
    with pytest.raises(ValueError, match="the priorities are of 60 time steps, these are 30"):
        SequencePriorities(3, 10, 5, 1, ReplayPriorities()).load_state_dict(replay.priorities.state_dict())


def test_the_correction_rises_and_settings_are_checked() -> None:
    config = ReplayPriorities(correction=0.4, final_correction=1.0)
    assert [config.correction_at(n, 10) for n in (0, 5, 10, 20)] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    assert config.correction_at(5, 0) == 0.4
    with pytest.raises(ValueError, match=r"exponent of priorities must lie in 0\.\.1, got 2"):
        ReplayPriorities(exponent=2)
    with pytest.raises(ValueError, match="keeps 3 time steps per environment, fewer than length=5"):
        make_replay(9)
