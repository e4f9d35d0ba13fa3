"""``vwm bench data s3://...``: how fast clips are read from a store, compared with the same shards on a disk."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from vwm.cli.bench_timing import format_timings
from vwm.cli.loader_timing import cycle_batches, time_batches
from vwm.core.command_output import format_command, format_size, print_next_command, progress_bar
from vwm.core.remote_files import open_file_system, retry
from vwm.data import remote_blocks
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.datamodule import ClipLoader
from vwm.data.shard_cache import ShardCache
from vwm.data.shard_index import list_shards, load_shard_indices, shard_index_path


def benchmark_store(
    data: str, clip_length: int, batch_size: int, workers: int, batches: int, repeats: int, shard_limit: int
) -> None:
    """Measure clips per second from a store, through an empty and a full cache on disk, and from the local disk.

    Args:
        data: shards at a remote address.
        clip_length, batch_size, workers, batches, repeats, shard_limit: see ``benchmark_data``.
    """
    shards = list_shards(data)[: shard_limit or None]
    episodes = [entry for index in load_shard_indices(shards) for entry in index.episodes]
    first = episodes[0]
    print(
        f"{len(shards)} shards, {len(episodes)} episodes, {first.height}x{first.width} pixels "
        f"({', '.join(sorted(first.members))}); clips of {clip_length} frames, batches of {batch_size}, "
        f"{workers} workers, {batches} batches per repeat"
    )
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "local"
        size = _download(shards, local)
        full = ShardCache(Path(scratch) / "full", 2 * size)
        variants: dict[str, Callable[[int], ClipLoader]] = {
            "local disk": lambda _: _make_loader([str(local)], clip_length, batch_size, workers, None),
            "store": lambda _: _make_loader(shards, clip_length, batch_size, workers, None),
            "store, empty cache on disk": lambda round_number: _make_loader(
                shards, clip_length, batch_size, workers, ShardCache(Path(scratch) / f"empty{round_number}", 2 * size)
            ),
            "store, full cache on disk": lambda _: _make_loader(shards, clip_length, batch_size, workers, full),
        }
        for _ in _make_loader(shards, clip_length, batch_size, 0, full):
            pass  # fills the cache
        speeds: dict[str, list[float]] = {name: [] for name in variants}
        for round_number in progress_bar(range(repeats), desc="time loaders", unit="round"):
            for name, make in variants.items():
                speeds[name].append(_time_loader(make(round_number), batches))
        for name, clips in speeds.items():
            share = np.median(clips) / np.median(speeds["local disk"])
            print(f"{name:27} {format_timings(clips, 1, 'clips/s')}, {share:.2f} x local disk")
    print_next_command(format_command("fit", "-c", "CONFIG", "--data", data))


def _make_loader(
    paths: list[str], clip_length: int, batch_size: int, workers: int, cache: ShardCache | None
) -> ClipLoader:
    return ClipLoader(make_clip_dataset(paths, clip_length, cache=cache), batch_size, workers=workers)


def _download(shards: list[str], folder: Path) -> int:
    """Copy shards and their indices to the local disk, and return their size in bytes."""
    folder.mkdir()
    start = time.perf_counter()
    for shard in progress_bar(shards, desc="copy to the local disk", unit="shard"):
        fs = open_file_system(shard)
        for file in (shard, shard_index_path(shard)):
            copy = folder / Path(file).name
            with suppress(FileNotFoundError):  # an index that is missing is built from its shard
                retry(file, "the file", partial(fs.get_file, fs._strip_protocol(file), str(copy)))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"copied {format_size(size)} in {time.perf_counter() - start:.1f} s")
    return size


def _time_loader(loader: ClipLoader, batches: int) -> float:
    """Return clips per second, of a process that has read nothing before."""
    remote_blocks.forget_recent_pieces()
    return time_batches(cycle_batches(loader), batches, loader.batch_size, warm_up=1 + 2 * loader.workers)
