"""Shards round-trip, are complete or absent, and can be read by WebDataset's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from vwm.data.episode import Episode
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import build_shard_index, load_shard_index, shard_index_path
from vwm.data.shard_reading import read_array, read_episode_metadata
from vwm.data.shards import ShardWriter, episode_to_sample


def episode(seed: int, length: int, side: int = 8, continuous: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(length, 2)).astype(np.float32) if continuous else rng.integers(0, 5, length)
    return Episode(
        rng.integers(0, 256, (length, side, side, 3), dtype=np.uint8),
        actions,
        rng.normal(size=length).astype(np.float32),
        rng.normal(size=(length, 3)).astype(np.float32),
        terminated=bool(seed % 2),
        truncated=not seed % 2,
        meta={"fps": 10, "source": f"game {seed}"},
    )


def write(path: Path, episodes: dict[str, Episode], **options: Any) -> str:
    with ShardWriter(path) as writer:
        for key, one in episodes.items():
            writer.write(key, one, **options)
    return str(path)


def test_round_trip(tmp_path: Path) -> None:
    episodes = {"a": episode(0, 5), "b_long-key": episode(1, 17, side=16), "c": episode(2, 1, continuous=True)}
    path = write(tmp_path / "new" / "shard-000000.tar", episodes)
    index = load_shard_index(path)
    assert index.tar == "shard-000000.tar"
    assert [(e.key, e.frames, e.height, e.width, e.fps) for e in index.episodes] == [
        ("a", 5, 8, 8, 10.0), ("b_long-key", 17, 16, 16, 10.0), ("c", 1, 8, 8, 10.0)
    ]  # fmt: skip
    for entry, one in zip(index.episodes, episodes.values(), strict=True):
        assert np.array_equal(read_episode_frames(path, entry), one.frames)
        for name in ("actions", "rewards", "state"):
            stored = read_array(path, entry, name)
            assert stored.dtype == getattr(one, name).dtype and np.array_equal(stored, getattr(one, name))
        meta = read_episode_metadata(path, entry)
        assert (meta["source"], meta["frames"]) == (one.meta["source"], len(one))
        assert (meta["terminated"], meta["truncated"]) == (one.terminated, one.truncated)


def test_small_frames_are_raw_and_large_ones_encoded(tmp_path: Path) -> None:
    small, large = Episode(np.zeros((3, 96, 96, 3), np.uint8)), Episode(np.zeros((3, 96, 98, 3), np.uint8))
    assert set(episode_to_sample("k", small)) == {"__key__", "json", "frames.npy"}
    assert set(episode_to_sample("k", large)) == {"__key__", "json", "mp4"}
    assert "mp4" in episode_to_sample("k", small, raw=False)
    assert "frames.npy" in episode_to_sample("k", large, raw=True)
    entry = load_shard_index(write(tmp_path / "s.tar", {"k": large})).episodes[0]
    assert (entry.frames, entry.height, entry.width) == (3, 96, 98)
    assert read_episode_frames(str(tmp_path / "s.tar"), entry).shape == (3, 96, 98, 3)


@pytest.mark.parametrize("key", ["a.b", "folder/a", ".hidden"])
def test_rejects_keys_that_webdataset_would_split(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r"must not contain '\.' or '/'"), ShardWriter(tmp_path / "s.tar") as writer:
        writer.write(key, episode(0, 2))
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "s.tar") as writer:
        writer.write("a", episode(0, 4))
        assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_older_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"a": episode(0, 4)})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RuntimeError), ShardWriter(path) as writer:
        writer.write("b", episode(1, 4))
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write(tmp_path / "s.tar", {"b": episode(1, 4)})
    assert [e.key for e in load_shard_index(path).episodes] == ["b"]


def test_a_failed_index_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(shard: str, written: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("vwm.data.shards.build_shard_index", fail)
    with pytest.raises(OSError, match="no space"), ShardWriter(tmp_path / "s.tar") as writer:
        writer.write("a", episode(0, 4))
    assert list(tmp_path.iterdir()) == []


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "one" / "s.tar", {"a": episode(0, 4), "b": episode(1, 6)})
    again = write(tmp_path / "two" / "s.tar", {"a": episode(0, 4), "b": episode(1, 6)})
    assert Path(first).read_bytes() == Path(again).read_bytes()
    assert Path(shard_index_path(first)).read_text() == Path(shard_index_path(again)).read_text()
    hashes = {load_shard_index(first).hash}
    for number, other in enumerate(
        ({"a": episode(0, 4)}, {"b": episode(1, 6), "a": episode(0, 4)}, {"a": episode(0, 4), "c": episode(1, 6)})
    ):
        hashes.add(load_shard_index(write(tmp_path / f"other{number}.tar", other)).hash)
    assert len(hashes) == 4


def test_the_sidecar_equals_a_rebuilt_index(tmp_path: Path) -> None:
    mixed = tmp_path / "s.tar"
    with ShardWriter(mixed) as writer:
        writer.write("a", episode(0, 4))
        writer.write("b", episode(1, 6, side=16), raw=False)
        writer.write_sample({"__key__": "c", "latents.npy": np.zeros((7, 2, 2), np.int32)})
    assert load_shard_index(str(mixed)) == build_shard_index(str(mixed))
    assert [e.frames for e in load_shard_index(str(mixed)).episodes] == [4, 6, 7]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdatasets_own_reader_opens_them(tmp_path: Path) -> None:
    episodes = {"a": episode(0, 5), "b": episode(1, 3)}
    path = write(tmp_path / "s.tar", episodes)
    read = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == ["a", "b"]
    for sample, one in zip(read, episodes.values(), strict=True):
        assert np.array_equal(sample["frames.npy"], one.frames)
        assert np.array_equal(sample["actions.npy"], one.actions)
        assert sample["json"]["source"] == one.meta["source"]
    raw = next(iter(webdataset.WebDataset(path, shardshuffle=False)))
    assert json.loads(raw["json"])["frames"] == 5
