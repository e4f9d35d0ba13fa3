"""Labeled clips, in parts that share no episode."""

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
def write(tmp_path: Path) -> Write:
    """Shards of two times ``episodes`` episodes. A frame's first pixel is its episode's number, its second the time;
    the state is (episode, time, a flag, nothing)."""

    def make(episodes: int = 10, name: str = "data", frames: int = 14, state: bool = True, **meta: Any) -> str:
        for shard in range(2):
            with ShardWriter(tmp_path / name / f"shard-{shard:06d}.tar") as writer:
                for i in range(episodes):
                    number = shard * episodes + i
                    pixels = np.zeros((frames, 8, 8, 3), np.uint8)
                    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = number, np.arange(frames)
                    told = np.stack(
                        [np.full(frames, number), np.arange(frames), np.arange(frames) % 2, np.zeros(frames)]
                    )
                    facts = {key: value(number) if callable(value) else value for key, value in meta.items()}
                    # Both shards have the same keys: they are different episodes all the same.
                    writer.write(
                        f"{i:03d}",
                        Episode(pixels, state=told.T.astype(np.float32, order="C") if state else None, meta=facts),
                    )
        return str(tmp_path / name)

    return make


def test_no_episode_is_in_two_parts(write: Write) -> None:
    found = read_labeled_clips(write(), 3, LabeledClipsConfig(clips=200, test_clips=200))
    seen = {part: set(getattr(found, part).frames[:, 0, 0, 0, 0].tolist()) for part in SPLITS}
    assert set().union(*seen.values()) == set(range(20)) and sum(map(len, seen.values())) == 20
    assert {part: len(numbers) for part, numbers in seen.items()} == {"train": 12, "val": 3, "test": 5}
    for part in SPLITS:
        clips = getattr(found, part)
        pairs = set(zip(clips.frames[:, 0, 0, 0, 0].tolist(), clips.episodes.tolist(), strict=True))
        assert len(pairs) == len(seen[part]) and {e for _, e in pairs} == set(range(len(seen[part])))


def test_the_label_of_a_clip_is_the_state_at_its_last_frame_standardized(write: Write) -> None:
    found = read_labeled_clips(write(), 3, LabeledClipsConfig(stride=2, clips=100))
    assert found.names == ("0", "1") and found.kind == "numbers"
    for part in SPLITS:
        clips = getattr(found, part)
        raw = torch.stack((clips.frames[:, -1, 0, 0, 0], clips.frames[:, -1, 0, 1, 0]), dim=1).double()
        if part == "train":
            mean, std = raw.mean(dim=0), raw.std(dim=0, correction=0)
            assert torch.allclose(clips.labels.mean(dim=0), torch.zeros(2).double(), atol=1e-9)
        torch.testing.assert_close(clips.labels, (raw - mean) / std)
        assert (clips.frames[:, 2, 0, 1, 0] - clips.frames[:, 0, 0, 1, 0] == 4).all()


def test_constant_numbers_are_excluded_with_a_reason(write: Write) -> None:
    found = read_labeled_clips(write(state_names=["episode", "time", "flag", "nothing"]), 3)
    assert found.names == ("episode", "time")
    assert found.excluded == {"flag": "2 values in the training clips", "nothing": "1 values in the training clips"}
    found = read_labeled_clips(
        write(state_names=["episode", "time", "flag", "nothing"]), 3, LabeledClipsConfig(state_names=["time"])
    )
    assert found.names == ("time",) and found.excluded["episode"] == "not selected"


def test_clips_are_limited_spread_over_episodes_and_the_same_every_time(write: Write) -> None:
    data = write()
    found, again, other = (
        read_labeled_clips(data, 3, LabeledClipsConfig(clips=24, test_clips=10), seed=s) for s in (0, 0, 1)
    )
    assert (len(found.train), len(found.val), len(found.test)) == (24, 6, 10)
    assert len(found.train.episodes.unique()) > 8
    assert torch.equal(found.train.frames, again.train.frames) and not torch.equal(found.test.frames, other.test.frames)
    assert found.train.available == 12 * 4


def test_the_test_part_may_come_from_other_shards(write: Write) -> None:
    found = read_labeled_clips(write(), 3, LabeledClipsConfig(test_data=write(3, "other", frames=24)))
    assert found.test.frames[:, :, 0, 1, 0].max() > 12
    assert len(set(found.train.frames[:, 0, 0, 0, 0].tolist()) | set(found.val.frames[:, 0, 0, 0, 0].tolist())) == 20


def test_labels_of_the_json_are_classes_or_numbers(write: Write) -> None:
    data = write(
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
    ("settings", "says"),
    [
        ({"label": "color"}, "no label 'color'.*fps"),
        ({"state_names": ["ball"]}, "no ball in state; it has 0, 1"),
        ({"state_names": ["2"]}, "nothing is left.*2 values"),
        ({"label": "fps"}, "10 in every training clip|fps is 10"),
        ({"label": "number"}, "only: use more episodes"),
        ({"label": "shape", "state_names": ["0"]}, "selects among numbers"),
    ],
)
def test_rejects_missing_labels(write: Write, settings: dict[str, Any], says: str) -> None:
    data = write(fps=10, number=lambda i: i, shape=lambda i: "ab"[i % 2])
    with pytest.raises(ValueError, match=says):
        read_labeled_clips(data, 3, LabeledClipsConfig(**settings))


def test_shards_without_state_are_an_error_with_a_remedy(write: Write) -> None:
    with pytest.raises(ValueError, match="--state"):
        read_labeled_clips(write(state=False), 3)


def test_few_episodes_are_split_so_that_no_part_is_empty() -> None:
    keys = [f"{i:03d}" for i in range(5)]
    assert {part: len(of) for part, of in split_episodes(keys, True, 0).items()} == {"train": 2, "val": 1, "test": 2}
    assert {part: len(of) for part, of in split_episodes(keys[:3], False, 0).items()} == {
        "train": 2,
        "val": 1,
        "test": 0,
    }
    assert split_episodes(keys, True, 0) != split_episodes(keys, True, 3)
    with pytest.raises(ValueError, match="4 episodes are too few"):
        split_episodes(keys[:4], True, 0)
