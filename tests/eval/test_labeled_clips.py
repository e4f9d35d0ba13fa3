"""Labeled clips, in splits that share no episode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.eval.labeled_clips import SPLITS, LabeledClipsConfig, read_labeled_clips, split_episodes

Write = Callable[..., str]


@pytest.fixture
def write_shards(tmp_path: Path) -> Write:
    """A function that writes two shards of ``episodes`` episodes each and returns their folder.

    The first pixel of a frame is the number of its episode, the second one its time step; the state is (episode, time
    step, a binary flag, zero).
    """

    def write(episodes: int = 10, name: str = "data", frames: int = 14, state: bool = True, **meta: Any) -> str:
        for shard in range(2):
            with ShardWriter(tmp_path / name / f"shard-{shard:06d}.tar") as writer:
                for i in range(episodes):
                    number = shard * episodes + i
                    pixels = np.zeros((frames, 8, 8, 3), np.uint8)
                    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = number, np.arange(frames)
                    states = np.stack(
                        [np.full(frames, number), np.arange(frames), np.arange(frames) % 2, np.zeros(frames)]
                    )
                    metadata = {key: value(number) if callable(value) else value for key, value in meta.items()}
                    # Equal keys in different shards are different episodes.
                    writer.write(
                        f"{i:03d}",
                        Episode(pixels, state=states.T.astype(np.float32, order="C") if state else None, meta=metadata),
                    )
        return str(tmp_path / name)

    return write


def test_no_episode_is_in_two_splits(write_shards: Write) -> None:
    labeled = read_labeled_clips(write_shards(), 3, LabeledClipsConfig(clips=200, test_clips=200))
    episode_numbers = {split: set(getattr(labeled, split).frames[:, 0, 0, 0, 0].tolist()) for split in SPLITS}
    assert set().union(*episode_numbers.values()) == set(range(20)) and sum(map(len, episode_numbers.values())) == 20
    assert {split: len(numbers) for split, numbers in episode_numbers.items()} == {"train": 12, "val": 3, "test": 5}
    for split in SPLITS:
        clips = getattr(labeled, split)
        pairs = set(zip(clips.frames[:, 0, 0, 0, 0].tolist(), clips.episodes.tolist(), strict=True))
        assert len(pairs) == len(episode_numbers[split]) and {e for _, e in pairs} == set(
            range(len(episode_numbers[split]))
        )


def test_labels_are_the_standardized_state_of_the_last_frame(write_shards: Write) -> None:
    labeled = read_labeled_clips(write_shards(), 3, LabeledClipsConfig(stride=2, clips=100))
    assert labeled.names == ("0", "1") and labeled.kind == "numbers"
    for split in SPLITS:
        clips = getattr(labeled, split)
        raw = torch.stack((clips.frames[:, -1, 0, 0, 0], clips.frames[:, -1, 0, 1, 0]), dim=1).double()
        if split == "train":
            mean, std = raw.mean(dim=0), raw.std(dim=0, correction=0)
            assert torch.allclose(clips.labels.mean(dim=0), torch.zeros(2).double(), atol=1e-9)
        torch.testing.assert_close(clips.labels, (raw - mean) / std)
        assert (clips.frames[:, 2, 0, 1, 0] - clips.frames[:, 0, 0, 1, 0] == 4).all()


def test_constant_numbers_are_excluded_with_a_reason(write_shards: Write) -> None:
    labeled = read_labeled_clips(write_shards(state_names=["episode", "time", "flag", "nothing"]), 3)
    assert labeled.names == ("episode", "time")
    assert labeled.excluded == {"flag": "2 values in the training clips", "nothing": "1 values in the training clips"}
    labeled = read_labeled_clips(
        write_shards(state_names=["episode", "time", "flag", "nothing"]), 3, LabeledClipsConfig(state_names=["time"])
    )
    assert labeled.names == ("time",) and labeled.excluded["episode"] == "not selected"


def test_clips_are_limited_spread_over_episodes_and_deterministic(write_shards: Write) -> None:
    data = write_shards()
    labeled, repeated, other_seed = (
        read_labeled_clips(data, 3, LabeledClipsConfig(clips=24, test_clips=10), seed=s) for s in (0, 0, 1)
    )
    assert (len(labeled.train), len(labeled.val), len(labeled.test)) == (24, 6, 10)
    assert len(labeled.train.episodes.unique()) > 8
    assert torch.equal(labeled.train.frames, repeated.train.frames) and not torch.equal(
        labeled.test.frames, other_seed.test.frames
    )
    assert labeled.train.available == 12 * 4


def test_the_test_split_can_come_from_other_shards(write_shards: Write) -> None:
    labeled = read_labeled_clips(write_shards(), 3, LabeledClipsConfig(test_data=write_shards(3, "other", frames=24)))
    assert labeled.test.frames[:, :, 0, 1, 0].max() > 12
    assert (
        len(set(labeled.train.frames[:, 0, 0, 0, 0].tolist()) | set(labeled.val.frames[:, 0, 0, 0, 0].tolist())) == 20
    )


def test_json_labels_are_classes_or_numbers(write_shards: Write) -> None:
    data = write_shards(
        20, shape=lambda i: ["square", "disc", "cross"][i % 3], speed=lambda i: i / 7, lit=lambda i: i % 2 == 0
    )
    shapes = read_labeled_clips(data, 3, LabeledClipsConfig(label="shape"))
    assert shapes.kind == "classes" and shapes.names == ("cross", "disc", "square") and shapes.num_outputs == 3
    expected = [("square", "disc", "cross")[i % 3] for i in shapes.test.frames[:, 0, 0, 0, 0].tolist()]
    assert [shapes.names[i] for i in shapes.test.labels.tolist()] == expected
    speeds = read_labeled_clips(data, 3, LabeledClipsConfig(label="speed"))
    assert speeds.kind == "numbers" and speeds.names == ("speed",)
    assert read_labeled_clips(data, 3, LabeledClipsConfig(label="lit")).names == ("False", "True")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "color"}, "no label 'color'.*fps"),
        ({"state_names": ["ball"]}, "no ball in state; it has 0, 1"),
        ({"state_names": ["2"]}, "nothing is left.*2 values"),
        ({"label": "fps"}, "10 in every training clip|fps is 10"),
        ({"label": "number"}, "only: use more episodes"),
        ({"label": "shape", "state_names": ["0"]}, "selects among numbers"),
    ],
)
def test_rejects_missing_labels(write_shards: Write, settings: dict[str, Any], message: str) -> None:
    data = write_shards(fps=10, number=lambda i: i, shape=lambda i: "ab"[i % 2])
    with pytest.raises(ValueError, match=message):
        read_labeled_clips(data, 3, LabeledClipsConfig(**settings))


def test_an_error_for_shards_without_state_suggests_the_state_option(write_shards: Write) -> None:
    with pytest.raises(ValueError, match="--state"):
        read_labeled_clips(write_shards(state=False), 3)


def test_no_split_of_few_episodes_is_empty() -> None:
    keys = [f"{i:03d}" for i in range(5)]
    assert {split: len(of) for split, of in split_episodes(keys, True, 0).items()} == {"train": 2, "val": 1, "test": 2}
    assert {split: len(of) for split, of in split_episodes(keys[:3], False, 0).items()} == {
        "train": 2,
        "val": 1,
        "test": 0,
    }
    assert split_episodes(keys, True, 0) != split_episodes(keys, True, 3)
    with pytest.raises(ValueError, match="4 episodes are too few"):
        split_episodes(keys[:4], True, 0)
