"""``vwm bench data``: how fast this machine reads clips.

It prints every setting next to the figures, alternates between the variants, and gives medians with their spread.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray

from vwm.cli.bench_store import benchmark_store
from vwm.cli.bench_timing import format_timings, measure_seconds
from vwm.cli.loader_timing import cycle_batches, time_batches
from vwm.core.command_output import format_command, print_next_command, progress_bar
from vwm.core.remote_files import is_remote
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.datamodule import ClipLoader
from vwm.data.in_place import is_in_place
from vwm.data.shard_index import list_shards, load_shard_index, shard_index_path
from vwm.data.shards import ShardWriter
from vwm.data.video_encoding import encode_video
from vwm.data.video_formats import VIDEO_EXTENSIONS


def benchmark_data(
    data: str,
    clip_length: int = 16,
    batch_size: int = 8,
    workers: int = 0,
    batches: int = 200,
    repeats: int = 5,
    shard_limit: int = 4,
) -> None:
    """Measure the loader's clips per second, compared with a plain WebDataset pipeline that decodes with decord.

    The plain pipeline is the usual one: shuffled shards, a shuffle buffer, one random clip per sample, batches. It
    reads mp4, so shards of raw frames are first copied to shards of the same episodes as H.264 (GOP 12), and the loader
    is timed on both.

    Args:
        data: a folder of shards, or a tar; at a remote address, its clips are compared with those of the local disk.
        clip_length: frames per clip.
        batch_size: clips per batch.
        workers: reader processes, of both pipelines.
        batches: batches per repeat, after warm-up.
        repeats: rounds in which the variants alternate.
        shard_limit: use the first shards only, since the copy is written in every run; 0 uses all.
    """
    if is_remote(data):
        benchmark_store(data, clip_length, batch_size, workers, batches, repeats, shard_limit)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = _stage_shards(data, Path(scratch), shard_limit)
        video = folders["mp4"]
        _print_data_settings(video, clip_length, batch_size, workers, batches)
        variants: dict[str, Callable[[], Iterator[Any]]] = {
            "webdataset + decord, mp4": lambda: _baseline_batches(video, clip_length, batch_size, workers)
        }
        for kind, folder in folders.items():
            variants[f"vwm, {kind}"] = lambda f=folder: cycle_batches(_make_loader(f, clip_length, batch_size, workers))  # type: ignore[misc]
        speeds = _time_data(variants, batches, batch_size, workers, repeats)
        plain = float(np.median(speeds["webdataset + decord, mp4"]))
        for name, clips in speeds.items():
            print(f"{name:26} {format_timings(clips, 1, 'clips/s')}, {np.median(clips) / plain:.2f} x plain")
        for kind, folder in folders.items():
            print(_time_resume(folder, kind, clip_length, batch_size, workers, plain))
    print_next_command(format_command("fit", "-c", "CONFIG", "--data", data))


def _stage_shards(shards: str, scratch: Path, limit: int) -> dict[str, Path]:
    """Return folders of the shards to read: links to them, and copies as mp4 where they are raw."""
    paths = list_shards(shards)[: limit or None]
    if is_in_place(paths[0]):
        raise ValueError(f"{shards}: is read in place, and the plain pipeline reads shards: vwm import it first")
    folder = scratch / "original"
    folder.mkdir()
    raw = False
    for path in paths:
        raw |= any("frames.npy" in episode.members for episode in load_shard_index(path).episodes)
        for file in (path, shard_index_path(path)):
            if Path(file).exists():
                (folder / Path(file).name).symlink_to(Path(file).resolve())
    if not raw:
        return {"mp4": folder}
    start = time.perf_counter()
    for path in progress_bar(paths, desc="copy as mp4", unit="shard"):
        with ShardWriter(scratch / "copy" / Path(path).name) as writer:
            for sample in webdataset.WebDataset(path, shardshuffle=False):
                frames = np.load(io.BytesIO(sample.pop("frames.npy")))
                fixed = {k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")}
                writer.write_sample({**fixed, "mp4": encode_video(frames, fps=15)})
    print(f"wrote mp4 copies of {len(paths)} shards in {time.perf_counter() - start:.0f} s")
    return {"raw": folder, "mp4": scratch / "copy"}


def _print_data_settings(folder: Path, clip_length: int, batch_size: int, workers: int, batches: int) -> None:
    indices = [load_shard_index(path) for path in list_shards(folder)]
    episodes = [episode for index in indices for episode in index.episodes]
    kinds = sorted({m for e in episodes for m in e.members})
    print(
        f"{len(indices)} shards, {len(episodes)} episodes of {np.mean([e.frames for e in episodes]):.0f} frames on "
        f"average, {episodes[0].height}x{episodes[0].width} pixels ({', '.join(kinds)}); clips of {clip_length} "
        f"frames, batches of {batch_size}, {workers} workers, {batches} batches per repeat, {os.cpu_count()} cores"
    )


def _make_loader(folder: Path, clip_length: int, batch_size: int, workers: int) -> ClipLoader:
    return ClipLoader(make_clip_dataset(str(folder), clip_length), batch_size, workers=workers)


def _baseline_batches(folder: Path, clip_length: int, batch_size: int, workers: int) -> Iterator[Any]:
    """Iterate over the plain pipeline. Its shuffle buffer holds undecoded samples, which are cheaper."""
    paths = list_shards(folder)
    if len(paths) < workers:
        raise ValueError(f"WebDataset gives each of {workers} workers shards of its own, but there are {len(paths)}")
    data = webdataset.WebDataset(paths, shardshuffle=len(paths)).repeat().shuffle(100)
    data = data.map(lambda sample: _baseline_clip(sample, clip_length)).select(lambda clip: clip is not None)
    return iter(webdataset.WebLoader(data.batched(batch_size), batch_size=None, num_workers=workers))


def _baseline_clip(sample: dict[str, Any], clip_length: int) -> tuple[NDArray[Any], ...] | None:
    """Return a random clip of a sample: its frames, and its actions if there are any."""
    import decord

    video = next(sample[extension] for extension in VIDEO_EXTENSIONS if extension in sample)
    reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
    if len(reader) < clip_length:
        return None
    start = random.randrange(len(reader) - clip_length + 1)
    try:
        frames = reader.get_batch(range(start, start + clip_length)).asnumpy()
    except decord.DECORDError as error:
        raise ValueError(
            f"episode {sample['__key__']}: decord, which the plain pipeline uses, cannot decode this video. It fails "
            f"for some frame widths, such as 16, 24 and 48 pixels: use shards of another size, such as 64"
        ) from error
    if "actions.npy" not in sample:
        return (frames,)
    return frames, np.load(io.BytesIO(sample["actions.npy"]))[start : start + clip_length]


def _time_data(
    variants: dict[str, Callable[[], Iterator[Any]]], batches: int, batch_size: int, workers: int, repeats: int
) -> dict[str, list[float]]:
    """Measure clips per second of each variant and repeat; each starts from scratch and warms up before it is timed."""
    from vwm.data import video_packets  # it needs PyAV, which raw frames do not

    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in progress_bar(range(repeats), desc="time loaders", unit="round"):
        for name, start in variants.items():
            video_packets._packet_table.cache_clear()  # as in a first epoch
            iterator = start()
            speeds[name].append(time_batches(iterator, batches, batch_size, warm_up=4 + 4 * workers))
            del iterator  # ends its workers
    return speeds


def _time_resume(folder: Path, kind: str, clip_length: int, batch_size: int, workers: int, plain: float) -> str:
    """Measure the time from ``load_state_dict`` to the first batch."""
    at = 10_000
    state = {**_make_loader(folder, clip_length, batch_size, workers).state_dict(), "global_batches": at}
    seconds: list[float] = []
    for _ in range(3):
        loader = _make_loader(folder, clip_length, batch_size, workers)
        with measure_seconds(seconds, torch.device("cpu")):
            loader.load_state_dict(state)
            next(iter(loader))
    return (
        f"resume at batch {at:,}, {kind:4}: {np.median(seconds):.3f} s to the first batch (epoch {at // len(loader)} "
        f"of {len(loader)} batches); replay in the plain pipeline, extrapolated: {at * batch_size / plain:.0f} s"
    )
