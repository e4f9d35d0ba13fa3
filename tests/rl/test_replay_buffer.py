"""The replay: what was added is what is drawn, at every place of the ring, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.replay_buffer import ReplayBuffer

SPACES = EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace("discrete", 3))
EXTRAS = {"value": ((), torch.float32)}
LANES = 3


def fill(replay: ReplayBuffer, start: int, end: int, episode: int = 7) -> None:
    """Time step t of lane i shows (t, i); every ``episode`` time steps another one begins."""
    lanes = torch.arange(LANES).float()
    for t in range(start, end):
        flag = torch.full((LANES,), t % episode == 0)
        last = torch.full((LANES,), t % episode == episode - 1)
        time_step = TimeStep(torch.stack((torch.full((LANES,), float(t)), lanes), -1), lanes + t, flag, last, last)
        replay.add(time_step, torch.full((LANES,), t % 3), {"value": lanes * 0 + t})


def make(capacity: int = 60, folder: Path | None = None) -> ReplayBuffer:
    return ReplayBuffer(capacity, LANES, SPACES, EXTRAS, seed=1, folder=folder)


@pytest.mark.parametrize("added", [8, 20, 53])
@pytest.mark.parametrize("disk", [False, True])
def test_pieces_are_moments_in_a_row_of_one_lane(added: int, disk: bool, tmp_path: Path) -> None:
    replay = make(folder=tmp_path if disk else None)
    fill(replay, 0, added)
    batch = replay.sample(500, 5)
    times, lanes = batch.observation.unbind(-1)
    assert (times.diff(dim=1) == 1).all() and (lanes.diff(dim=1) == 0).all()
    assert torch.equal(batch.reward, times + lanes) and torch.equal(batch.action, times.long() % 3)
    assert torch.equal(batch.extras["value"], times)
    # Every start that is still there is drawn, and nothing else.
    assert set(times[:, 0].tolist()) == set(range(max(0, added - 20), added - 4))
    assert set(lanes[:, 0].tolist()) == {0, 1, 2}


def test_pieces_within_episodes_begin_nothing_anew() -> None:
    replay = make()
    fill(replay, 0, 33)
    batch = replay.sample(300, 5, single_episode=True)
    assert len(batch.reward) == 300
    assert not batch.is_first[:, 1:].any()
    assert {int(t) % 7 for t in batch.observation[:, 0, 0]} == {0, 1, 2}
    with pytest.raises(ValueError, match="too few episodes in the replay buffer are 8 time steps long"):
        replay.sample(4, 8, single_episode=True)


def test_pieces_may_be_led_by_moments_of_the_episode_before() -> None:
    replay = make()
    fill(replay, 0, 33)
    batch = replay.sample(400, 5, single_episode=True, context_steps=2)
    assert not batch.is_first[:, 3:].any()
    assert {int(t) % 7 for t in batch.observation[:, 0, 0]} == {0, 1, 2, 5, 6}


def test_what_was_lived_after_the_checkpoint_is_left_out_and_tidied_away(tmp_path: Path) -> None:
    replay = make()
    fill(replay, 0, 5)
    first = replay.save(tmp_path)
    fill(replay, 5, 10)
    second = replay.save(tmp_path)
    for state, kept in ((first, 5), (second, 10)):  # a look at the checkpoint before takes nothing from the next
        other = make()
        other.load(tmp_path, state)
        assert other.num_added == kept
    other = make()
    other.load(tmp_path, first)
    other.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000000-000000000005.npz", "extras-000000000005.npz",
    ]  # fmt: skip


def test_what_is_written_back_is_drawn_again() -> None:
    replay = make()
    fill(replay, 0, 25)
    batch = replay.sample(40, 4)
    replay.update_extras(batch.indices, {"value": batch.extras["value"] + 1000})
    again = replay.gather(batch.indices.numpy())
    assert torch.equal(again.extras["value"], batch.extras["value"] + 1000)
    assert torch.equal(again.reward, batch.reward)


@pytest.mark.parametrize("stops", [(5, 9), (12, 30, 33), (50, 51, 90)])
def test_loaded_is_saved(stops: tuple[int, ...], tmp_path: Path) -> None:
    replay, start = make(), 0
    for stop in stops:
        fill(replay, start, stop)
        batch = replay.sample(8, 3)
        replay.update_extras(batch.indices, {"value": batch.extras["value"] * -1})
        state, start = replay.save(tmp_path), stop
        replay.prune(tmp_path)
    other = make()
    other.load(tmp_path, state)
    kept = np.arange(max(0, start - 20), start) % 20
    assert all(np.array_equal(replay.storage[name][:, kept], other.storage[name][:, kept]) for name in replay.storage)
    fill(replay, start, start + 3)
    fill(other, start, start + 3)
    first, second = replay.sample(16, 4), other.sample(16, 4)
    assert torch.equal(first.indices, second.indices) and torch.equal(first.observation, second.observation)


def test_a_missing_part_is_reported(tmp_path: Path) -> None:
    replay = make()
    for start in (0, 5, 10):
        fill(replay, start, start + 5)
        state = replay.save(tmp_path)
    next(tmp_path.glob("*000005-*")).unlink()
    with pytest.raises(ValueError, match="time steps 5 to 15 of the replay buffer are missing"):
        make().load(tmp_path, state)


def test_rejects_a_replay_without_capacity() -> None:
    with pytest.raises(ValueError, match="capacity=2 must be at least the number of environments, 3"):
        make(capacity=2)
    with pytest.raises(ValueError, match="0 time steps per environment, fewer than length=4"):
        make().sample(1, 4)
