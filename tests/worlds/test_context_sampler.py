"""Sampling of starting contexts from a recording."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.worlds.context_sampler import ContextSampler, rewarded_within

REWARDED_STEPS = {"a": [5], "b": []}
LENGTHS = {"a": 9, "b": 7}


def record(folder: Path, rewards: bool = True) -> str:
    """Write episodes whose first pixels and actions contain their position in the recording."""
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for number, (key, length) in enumerate(LENGTHS.items()):
            positions = np.arange(length) + 20 * number
            frames = np.zeros((length, 8, 8, 3), np.uint8)
            frames[:, 0, 0, 0] = positions
            reward = np.isin(np.arange(length), REWARDED_STEPS[key]).astype(np.float32) * -2
            writer.write(key, Episode(frames, positions, reward if rewards else None, terminated=key == "a"))
    return str(folder)


def test_sampled_contexts_are_complete_and_cover_every_time_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    contexts = ContextSampler(record(tmp_path), 3, horizon=2)
    sampled = contexts.sample(300)
    starts = sampled.frames[:, 0, 0, 0, 0].long()
    assert set(starts.tolist()) == {*range(7), *range(20, 25)}
    assert torch.equal(sampled.frames[:, :, 0, 0, 0].long(), starts[:, None] + torch.arange(3))
    assert torch.equal(sampled.actions, starts[:, None] + torch.arange(2))
    assert sampled.sampled_uniformly.all()


def test_rewarded_contexts_lead_to_a_reward(tmp_path: Path) -> None:
    contexts = ContextSampler(record(tmp_path), 3, horizon=2, rewarded_fraction=0.75)
    sampled = contexts.sample(200)
    assert sampled.sampled_uniformly.sum() == 50 and sampled.sampled_uniformly[:50].all()
    # Action 5 is rewarded: it is within the two actions after contexts that end at frames 4 and 5.
    assert set(sampled.frames[50:, -1, 0, 0, 0].tolist()) == {4, 5}
    assert contexts.sample(1).sampled_uniformly.all()


def test_clips_run_past_ends_where_they_may(tmp_path: Path) -> None:
    """So that the end of episode a, after its ninth frame, is at any place; episode b did not end."""
    torch.manual_seed(0)
    sampler = ContextSampler(record(tmp_path), 3, horizon=2, rewarded_fraction=0.5, outcomes=True, past_ends=True)
    clips = sampler.sample_clips(400)
    starts = clips.frames[:, 0, 0, 0, 0].long()
    positions = starts[:, None] + torch.arange(3)
    assert set(starts[:200].tolist()) == {*range(9), *range(20, 25)}
    assert set(clips.frames[200:, -1, 0, 0, 0].tolist()) == {4, 5}  # as without clips past the end
    assert torch.equal(
        clips.frames[:, :, 0, 0, 0].long(), torch.where(starts[:, None] < 9, positions.clamp(max=8), positions)
    )
    assert clips.terminated is not None and torch.equal(clips.terminated, positions == 8)
    after = (positions > 8) & (starts[:, None] < 9)
    assert torch.equal(clips.rewards.isnan(), after) and not clips.actions[after].any()


def test_evenly_spaced_contexts_span_the_recording(tmp_path: Path) -> None:
    data = record(tmp_path)
    few, all_contexts = (
        ContextSampler(data, 3, horizon=2).evenly_spaced(3),
        ContextSampler(data, 3, horizon=2).evenly_spaced(100),
    )
    assert few[:, 0, 0, 0, 0].tolist() == [0, 6, 24]
    assert all_contexts[:, 0, 0, 0, 0].tolist() == [*range(7), *range(20, 25)]
    half = ContextSampler(data, 3, horizon=2, rewarded_fraction=0.5).evenly_spaced(4)
    assert half[:, -1, 0, 0, 0].tolist() == [2, 26, 4, 5]


def test_rewarded_within_marks_steps_up_to_the_horizon_before_a_reward() -> None:
    assert rewarded_within(np.array([0, 0, 0, 2, 0], np.float32), 2).tolist() == [False, False, True, True, False]


def test_samples_depend_on_the_torch_seed(tmp_path: Path) -> None:
    contexts = ContextSampler(record(tmp_path), 2, horizon=2, rewarded_fraction=0.5)
    frames = [torch.manual_seed(seed) and contexts.sample(8).frames for seed in (0, 1, 0)]
    assert torch.equal(frames[0], frames[2]) and not torch.equal(frames[0], frames[1])


def test_rejects_invalid_fractions_and_recordings(tmp_path: Path) -> None:
    data = record(tmp_path / "with")
    assert ContextSampler(data, 2, horizon=2, actions=False).sample(2).actions is None
    with pytest.raises(ValueError, match="from 0 to below 1, got 1"):
        ContextSampler(data, 2, horizon=2, rewarded_fraction=1.0)
    with pytest.raises(ValueError, match="no episode is long enough"):
        ContextSampler(data, 10, horizon=2)
    with pytest.raises(ValueError, match="no action in this recording was rewarded"):
        ContextSampler(data, 8, horizon=0, rewarded_fraction=0.5)
    with pytest.raises(ValueError, match="has no rewards"):
        ContextSampler(record(tmp_path / "without", rewards=False), 2, horizon=2, rewarded_fraction=0.5)
