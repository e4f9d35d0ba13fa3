"""Replay buffer: samples equal what was added, at every position of the ring, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from replay_steps import EXTRAS, NUM_ENVS, SPACES, fill

from vwm.rl.replay_buffer import ReplayBuffer


def make_replay(capacity: int = 60, folder: Path | None = None) -> ReplayBuffer:
    return ReplayBuffer(capacity, NUM_ENVS, SPACES, EXTRAS, seed=1, folder=folder)


@pytest.mark.parametrize("added", [8, 20, 53])
@pytest.mark.parametrize("disk", [False, True])
def test_samples_are_consecutive_time_steps_of_one_environment(added: int, disk: bool, tmp_path: Path) -> None:
    replay = make_replay(folder=tmp_path if disk else None)
    fill(replay, 0, added)
    batch = replay.sample(500, 5)
    times, env_indices = batch.observation.unbind(-1)
    assert (times.diff(dim=1) == 1).all() and (env_indices.diff(dim=1) == 0).all()
    assert torch.equal(batch.reward, times + env_indices) and torch.equal(batch.action, times.long() % 3)
    assert torch.equal(batch.extras["value"], times)
    # Exactly the starts that are still stored are sampled.
    assert set(times[:, 0].tolist()) == set(range(max(0, added - 20), added - 4))
    assert set(env_indices[:, 0].tolist()) == {0, 1, 2}


def test_single_episode_samples_have_no_episode_start_after_the_first_step() -> None:
    replay = make_replay()
    fill(replay, 0, 33)
    batch = replay.sample(300, 5, single_episode=True)
    assert len(batch.reward) == 300
    assert not batch.is_first[:, 1:].any()
    assert {int(t) % 7 for t in batch.observation[:, 0, 0]} == {0, 1, 2}
    with pytest.raises(ValueError, match="too few episodes in the replay buffer are 8 time steps long"):
        replay.sample(4, 8, single_episode=True)


def test_sequences_past_ends_repeat_the_termination_and_have_it_at_every_place() -> None:
    """Episodes of 7 time steps terminate at 6, 13, 20 and 27: a sequence stays there, and none begins there."""
    replay = make_replay()
    fill(replay, 0, 33)
    batch = replay.sample(500, 5, single_episode=True, past_ends=True)
    times = batch.observation[..., 0]
    assert not batch.is_first[:, 1:].any()
    assert {int(t) % 7 for t in times[:, 0]} == {0, 1, 2, 3, 4, 5}
    expected = torch.minimum(times[:, :1] + torch.arange(5), times[:, :1] // 7 * 7 + 6)
    assert torch.equal(times, expected) and torch.equal(batch.is_terminal, times % 7 == 6)
    assert {int(place) for place in batch.is_terminal[batch.is_terminal.any(1)].int().argmax(1)} == {1, 2, 3, 4}
    assert len(replay.sample(20, 9, single_episode=True, past_ends=True).reward) == 20  # longer than an episode


def test_context_steps_may_belong_to_the_previous_episode() -> None:
    replay = make_replay()
    fill(replay, 0, 33)
    batch = replay.sample(400, 5, single_episode=True, context_steps=2)
    assert not batch.is_first[:, 3:].any()
    assert {int(t) % 7 for t in batch.observation[:, 0, 0]} == {0, 1, 2, 5, 6}


def test_loading_ignores_time_steps_after_the_checkpoint_and_prune_deletes_them(tmp_path: Path) -> None:
    replay = make_replay()
    fill(replay, 0, 5)
    first = replay.save(tmp_path)
    fill(replay, 5, 10)
    second = replay.save(tmp_path)
    for state, num_saved in ((first, 5), (second, 10)):  # loading the first deletes nothing of the second
        loaded = make_replay()
        loaded.load(tmp_path, state)
        assert loaded.num_added == num_saved
    loaded = make_replay()
    loaded.load(tmp_path, first)
    loaded.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000000-000000000005.npz", "extras-000000000005.npz",
    ]  # fmt: skip


def test_updated_extras_are_returned() -> None:
    replay = make_replay()
    fill(replay, 0, 25)
    batch = replay.sample(40, 4)
    replay.update_extras(batch.indices, {"value": batch.extras["value"] + 1000})
    gathered = replay.gather(batch.indices.numpy())
    assert torch.equal(gathered.extras["value"], batch.extras["value"] + 1000)
    assert torch.equal(gathered.reward, batch.reward)


@pytest.mark.parametrize("stops", [(5, 9), (12, 30, 33), (50, 51, 90)])
def test_a_loaded_replay_equals_the_saved_one(stops: tuple[int, ...], tmp_path: Path) -> None:
    replay, start = make_replay(), 0
    for stop in stops:
        fill(replay, start, stop)
        batch = replay.sample(8, 3)
        replay.update_extras(batch.indices, {"value": batch.extras["value"] * -1})
        state, start = replay.save(tmp_path), stop
        replay.prune(tmp_path)
    loaded = make_replay()
    loaded.load(tmp_path, state)
    stored = np.arange(max(0, start - 20), start) % 20
    assert all(
        np.array_equal(replay.fields[name].dump(stored), loaded.fields[name].dump(stored)) for name in replay.fields
    )
    fill(replay, start, start + 3)
    fill(loaded, start, start + 3)
    first, second = replay.sample(16, 4), loaded.sample(16, 4)
    assert torch.equal(first.indices, second.indices) and torch.equal(first.observation, second.observation)


def test_rejects_a_replay_with_a_missing_file(tmp_path: Path) -> None:
    replay = make_replay()
    for start in (0, 5, 10):
        fill(replay, start, start + 5)
        state = replay.save(tmp_path)
    next(tmp_path.glob("*000005-*")).unlink()
    with pytest.raises(ValueError, match="time steps 5 to 15 of the replay buffer are missing"):
        make_replay().load(tmp_path, state)


@pytest.mark.parametrize("kind", ["cut", "text", "flipped", "empty"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path) -> None:
    replay = ReplayBuffer(60, NUM_ENVS, SPACES, EXTRAS)
    fill(replay, 0, 12)
    state = replay.save(tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    for path, data in whole.items():
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-30], "text": b"no archive", "flipped": flipped, "empty": b""}[kind])
        with pytest.raises(ValueError, match=rf"{path.name}: is cut off or damaged .*: start a new run"):
            ReplayBuffer(60, NUM_ENVS, SPACES, EXTRAS).load(tmp_path, state)
        path.write_bytes(data)
    ReplayBuffer(60, NUM_ENVS, SPACES, EXTRAS).load(tmp_path, state)


def test_rejects_a_too_small_capacity_and_too_long_samples() -> None:
    with pytest.raises(ValueError, match="capacity=2 must be at least the number of environments, 3"):
        make_replay(capacity=2)
    with pytest.raises(ValueError, match="0 time steps per environment, fewer than length=4"):
        make_replay().sample(1, 4)


def test_replay_on_a_device_gives_the_samples_of_host_memory_also_from_its_files(tmp_path: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    host, on_device = (ReplayBuffer(60, NUM_ENVS, SPACES, EXTRAS, seed=1, device=where) for where in (None, device))
    for start, end in ((0, 13), (13, 31)):
        for number, replay in enumerate((host, on_device)):
            fill(replay, start, end)
            batch = replay.sample(40, 5, single_episode=True)
            value = torch.arange(200.0).view(40, 5)  # some time steps are drawn twice, and the last value counts
            replay.update_extras(batch.indices, {"value": value.to(batch.extras["value"].device)})
            state = replay.save(tmp_path / str(number))
        loaded = ReplayBuffer(60, NUM_ENVS, SPACES, EXTRAS, device=device)
        loaded.load(tmp_path / "0", state)
        host.generator.bit_generator.state = state["generator"]
        samples = [replay.sample(50, 4) for replay in (host, on_device, loaded)]
        assert samples[1].observation.device.type == samples[1].extras["value"].device.type == device.type
        for other in samples[1:]:
            assert torch.equal(samples[0].observation, other.observation.cpu())
            assert torch.equal(samples[0].extras["value"], other.extras["value"].cpu())
            assert torch.equal(samples[0].indices, other.indices) and torch.equal(samples[0].reward, other.reward)
