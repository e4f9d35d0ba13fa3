"""The cache of pieces of remote shards: bounded, shared by processes, unharmed by kills and damage."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vwm.data import remote_blocks
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.datamodule import VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shard_cache import ShardCache
from vwm.data.shards import ShardWriter


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def piece(number: int, size: int = 1000) -> bytes:
    return bytes([number % 256]) * size


def test_the_pieces_used_last_stay_within_the_limit(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10_500)
    for number in range(50):
        cache.write("a", number, piece(number))
        os.utime(cache._path("a", number), (number, number))  # as if a second passed
        if number:
            assert cache.read("a", 0, 1000) == piece(0)  # in use all the time
        assert size_of(tmp_path / "cache") <= 10_500
    kept = [number for number in range(50) if cache._path("a", number).exists()]
    assert kept[0] == 0 and kept[1:] == list(range(50 - len(kept) + 1, 50)) and len(kept) >= 8
    cache.write("a", 99, piece(0, 20_000))  # larger than the limit
    assert not cache._path("a", 99).exists() and len(list((tmp_path / "cache").glob("*/*"))) == len(kept)


@pytest.mark.parametrize("damage", ["cut off", "flipped", "of another piece", "empty"])
def test_a_damaged_piece_is_not_read(tmp_path: Path, damage: str) -> None:
    cache = ShardCache(tmp_path, 1 << 20)
    cache.write("a", 1, piece(1))
    cache.write("a", 2, piece(2))
    path = cache._path("a", 1)
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut off": data[:-1],
            "flipped": data[:5] + b"x" + data[6:],
            "of another piece": cache._path("a", 2).read_bytes(),
            "empty": b"",
        }[damage]
    )
    assert cache.read("a", 1, 1000) is None and not path.exists()
    assert cache.read("a", 2, 1000) == piece(2)
    assert cache.read("b", 2, 1000) is None  # of another shard, or of another state of it
    assert cache.read("a", 2, 999) is None


def _fill(folder: str, first: int, count: int) -> None:
    cache = ShardCache(Path(folder), 40_000)
    for number in range(first, first + count):
        cache.write("a", number % 90, piece(number % 90))
        found = cache.read("a", (number * 7) % 90, 1000)
        assert found in (None, piece((number * 7) % 90))


def test_many_processes_and_kills(tmp_path: Path) -> None:
    """Three processes write and read at once, two are killed; the limit holds, and every piece is whole."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_fill, args=(str(tmp_path), 100 * n, 60 if n == 0 else 10**6)) for n in range(3)
    ]
    for process in processes:
        process.start()
    processes[0].join()
    assert processes[0].exitcode == 0
    for process in processes[1:]:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    (tmp_path / f".{processes[2].pid}.abcdefgh.tmp").write_bytes(b"half")  # as a kill in the middle of a write does
    assert size_of(tmp_path) <= 40_000
    cache = ShardCache(tmp_path, 40_000)
    whole = [n for n in range(90) if cache.read("a", n, 1000) == piece(n)]
    assert len(whole) == len(list(tmp_path.glob("*/*")))
    for number in range(200, 240):
        cache.write("b", number, piece(number))
    assert size_of(tmp_path) <= 40_000 and not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the cache of shards keeps nothing"):
        ShardCache(tmp_path / "file", 1000).write("a", 0, piece(0, 10))
    assert ShardCache(tmp_path / "file", 1000).read("a", 0, 10) is None


def test_clips_come_from_the_cache_and_not_of_an_object_that_was_replaced(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with ShardWriter(tmp_path / "shard-000000.tar") as writer:
            for episode in range(4):
                frames = rng.integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
                writer.write(f"{episode}", Episode(frames, rng.integers(0, 4, 30)))
        for file in tmp_path.glob("shard-*"):
            with fsspec.open(f"memory://cached/{file.name}", "wb") as remote:
                remote.write(file.read_bytes())

    def read(cache: ShardCache | None) -> list[np.ndarray]:
        remote_blocks.forget_recent_pieces()
        clips = make_clip_dataset("memory://cached", 5, cache=cache)
        return [clips[i]["frames"] for i in range(len(clips))]

    write(0)
    cache = ShardCache(tmp_path / "cache", 10**7)
    first = read(cache)
    assert all(map(np.array_equal, first, read(None)))
    assert size_of(tmp_path / "cache") == (tmp_path / "shard-000000.tar").stat().st_size + 4 * 2  # two pieces of 1 MB
    fetched: list[object] = []
    original = remote_blocks.read_range
    try:
        remote_blocks.read_range = lambda *arguments: fetched.append(arguments) or original(*arguments)
        assert all(map(np.array_equal, first, read(cache))) and not fetched
        for path in (tmp_path / "cache").glob("*/*"):
            path.write_bytes(path.read_bytes()[:-100])
        assert all(map(np.array_equal, first, read(cache))) and len(fetched) == 2
    finally:
        remote_blocks.read_range = original
    write(1)  # of the same size; this store has no ETags: the checksums of the index tell the two apart
    second = read(cache)
    assert all(map(np.array_equal, second, read(None))) and not np.array_equal(first[0], second[0])


def test_the_data_module_takes_its_size_and_folder(tmp_path: Path) -> None:
    module = VideoDataModule("memory://cached", 4, cache_gb=0.5, cache_folder=str(tmp_path))
    assert module.cache == ShardCache(tmp_path, 500_000_000)
    assert VideoDataModule("memory://cached", 4).cache is None
    with pytest.raises(ValueError, match="cache_gb must be 0 or more, got -1"):
        VideoDataModule("memory://cached", 4, cache_gb=-1)
