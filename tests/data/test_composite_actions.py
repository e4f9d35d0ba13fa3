"""Composite actions in episodes, shards, clips and statistics."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import composite_parts, composite_space

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import collate_clips
from vwm.data.episode import Episode
from vwm.data.shard_index import build_shard_index, load_shard_index
from vwm.data.shards import ShardWriter

SPACE = composite_space()


def composite_episode(seed: int, length: int = 12, **meta: Any) -> Episode:
    rng = np.random.default_rng(seed)
    actions = SPACE.from_flat(torch.from_numpy(rng.uniform(-1, 1, (length, SPACE.size)).astype(np.float32)))
    frames = rng.integers(0, 256, (length, 8, 8, 3), np.uint8)
    return Episode(frames, actions.numpy(), meta={"fps": 10, "action_parts": composite_parts(), **meta})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two episodes; the second does not know its pointer."""
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        writer.write("a", composite_episode(0))
        writer.write("b", composite_episode(1, unknown_action_parts=["mouse"]))
    return tmp_path / "data"


def test_values_are_checked_by_their_parts() -> None:
    assert composite_episode(0).action_parts == SPACE.parts
    for column, value, said in ((0, 3, "'color'"), (1, 0.5, "'keys.left'"), (6, 1.5, "'mouse.y'")):
        actions = composite_episode(0).actions.copy()
        actions[3, column] = value
        with pytest.raises(ValueError, match=rf"action column {said} must be .* got {value}"):
            Episode(composite_episode(0).frames, actions, meta={"action_parts": composite_parts()})


def test_clips_say_which_parts_are_known(data: Path) -> None:
    clips = make_clip_dataset(str(data), 4)
    batch = collate_clips([clips[i] for i in range(len(clips))])
    assert batch.actions.dtype == torch.float32 and batch.actions.shape[1:] == (4, 7)
    SPACE.check_rows(batch.actions)
    assert {tuple(known.tolist()) for known in batch.known_parts} == {(True, True, True), (True, True, False)}
    assert batch.labeled is None
    entries = load_shard_index(str(data / "shard-000000.tar")).episodes
    assert [entry.known_parts for entry in entries] == [(True,) * 3, (True, True, False)]
    assert load_shard_index(str(data / "shard-000000.tar")) == build_shard_index(str(data / "shard-000000.tar"))


def test_clips_of_known_parts_say_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        writer.write("a", composite_episode(0))
    assert "known_parts" not in make_clip_dataset(str(tmp_path), 4)[0]


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"action_parts": composite_parts()[:2]}, r"a.json: action_parts have 5 columns .* the actions are \[12, 7\]"),
        ({"action_parts": [{"kind": "wheel"}]}, "a.json: kind of an action part must be one of"),
        ({"unknown_action_parts": ["pedal"]}, "a.json: unknown_action_parts must be a list of color, keys, mouse"),
    ],
)
def test_invalid_metadata_is_reported(tmp_path: Path, data: Path, meta: dict[str, Any], said: str) -> None:
    (tmp_path / "members").mkdir()
    with tarfile.open(data / "shard-000000.tar") as tar:
        for member in tar:
            (tmp_path / "members" / member.name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    content = json.loads((tmp_path / "members" / "a.json").read_text())
    (tmp_path / "members" / "a.json").write_text(json.dumps({**content, **meta}))
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for path in sorted((tmp_path / "members").iterdir()):
            tar.add(path, path.name)
    with pytest.raises(ValueError, match=said):
        build_shard_index(str(tmp_path / "other.tar"))
