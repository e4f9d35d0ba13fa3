"""`vwm bench play` and `vwm bench data`: how fast this machine plays a world, and how fast it reads clips.

Both print every setting beside the figures, take the contestants in turns, and give medians with their spread.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.capabilities import DecodesLatents
from vwm.core.family import CacheComparison
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import fold_in
from vwm.data import frame_reading
from vwm.data.datamodule import ClipLoader, make_clip_dataset
from vwm.data.shard_index import list_shards, load_shard_index, shard_index_path
from vwm.data.shards import ShardWriter
from vwm.data.video import VIDEO_EXTENSIONS
from vwm.data.video_encoding import encode_video
from vwm.worlds.bundle import load_simulator
from vwm.worlds.families import find_family

# --------------------------------------------------------------------------------------------------- play


def benchmark_play(
    bundle: Path,
    steps: int = 40,
    batch: int = 1,
    sampling_steps: int | None = None,
    threads: int | None = None,
    repeats: int = 5,
    device: str = "auto",
) -> None:
    """Time a frame of play; of a Genie world with the cache and without it.

    "Without" computes the same frames with the same weights from the whole window at every MaskGIT step, through the
    path that training takes, and decodes the window; that the two agree is checked first.

    Args:
        bundle: the world.
        steps: frames a repeat (without the cache a fifth of it).
        batch: worlds played at once.
        sampling_steps: sampling steps a frame; by default the bundle's.
        threads: of the CPU; by default torch's choice.
        repeats: rounds in which the two take turns.
        device: where to play; auto takes a GPU where there is one.
    """
    with _limit_threads(threads):
        simulator = load_simulator(bundle, device)
        if sampling_steps is not None:
            simulator = simulator.with_sampling(steps=sampling_steps)
        family = find_family(simulator)
        window = family.window(simulator)
        context = _benchmark_context(simulator, batch)

        def actions(number: int) -> Tensor:
            return _benchmark_actions(simulator, batch, number)

        _print_play_settings(simulator, context, window)
        comparison = family.compare_cache(simulator, context, actions)
        if comparison is None:
            seconds = _time_steps(simulator, context, actions, window, steps * repeats)
            included = "" if simulator.spec.observation.is_latent else ", decode included"
            print(f"{'a step':18} {_format_timings(seconds, 1e3, 'ms a frame')}{included}")
            return
        print(f"agreement          {comparison.check_agreement()}")
        times = _time_cache(comparison, steps * repeats, simulator.device)
        for name, seconds in times.items():
            print(f"{name:18} {_format_timings(seconds, 1e3, 'ms a frame')}")
        gain = float(np.median(times["without the cache"]) / np.median(times["with the cache"]))
        print(f"the cache makes a frame {gain:.1f} times as fast; {batch / np.median(times['with the cache']):.1f} "
              f"frames a second, recorded at {simulator.spec.fps:g}")  # fmt: skip


def _print_play_settings(simulator: NetworkSimulator, context: Tensor, window: int) -> None:
    networks = simulator.networks()
    sizes = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()):,}" for n, m in networks.items())
    drawn = ", ".join(f"{name} {value:g}" for name, value in simulator.sampling._asdict().items()) or "nothing drawn"
    print(f"world              {simulator.spec.title} ({find_family(simulator).title}); parameters: {sizes}")
    print(
        f"settings           {_describe_context(simulator)}, {_describe_latents(simulator, context)} a frame, "
        f"a window of {window} frames, {drawn}, batch {len(context)}"
    )
    print(
        f"machine            {simulator.device}, {simulator.dtype}, {torch.get_num_threads()} "
        f"threads of {os.cpu_count()} cores, torch {torch.__version__}"
    )


def _describe_context(simulator: NetworkSimulator) -> str:
    shape = simulator.spec.context.shape
    return f"{shape[0]} numbers" if simulator.spec.context.is_vector else f"{shape[0]}x{shape[1]} pixels"


@torch.inference_mode()
def _describe_latents(simulator: NetworkSimulator, context: Tensor) -> str:
    latent = simulator.latent(simulator.reset(context)[0])[0]
    if not latent.is_floating_point():
        codes = f" of {simulator.codebook_size} codes" if isinstance(simulator, DecodesLatents) else ""
        return f"{latent.numel()} tokens{codes}"
    width = latent.shape[-1]
    return f"{latent.numel() // width} latents of {width} numbers"


@torch.inference_mode()
def _time_steps(
    simulator: NetworkSimulator, context: Tensor, actions: Callable[[int], Tensor], window: int, steps: int
) -> list[float]:
    """Time steps in seconds, once the window is full."""
    state, _ = simulator.reset(context)
    times: list[float] = []
    for number in range(window + steps):
        with _measure_seconds(times, simulator.device):
            state, _ = simulator.step(state, actions(number))
    return times[window:]


def _time_cache(comparison: CacheComparison, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Time frames with and without a cache in turns, in seconds; the decoder's share is a second call of its own."""
    times: dict[str, list[float]] = {"with the cache": [], "- of it decoding": [], "without the cache": []}
    for number in range(steps):
        with _measure_seconds(times["with the cache"], device):
            comparison.step(number)
        with _measure_seconds(times["- of it decoding"], device):
            comparison.decode()
        if number % 5 == 0:
            with _measure_seconds(times["without the cache"], device):
                comparison.step_uncached(number)
    return times


def _benchmark_context(simulator: NetworkSimulator, batch: int) -> Tensor:
    """One observation of each world to begin from, of the bundle's starts or noise: [b, 1, ...]."""
    starts, space = simulator.starts, simulator.spec.context
    if starts is None:
        noise = torch.rand(1, 1, *space.shape)
        starts = noise if space.is_vector else (noise * 256).to(space.dtype)
    return starts[torch.arange(batch) % len(starts)][:, :1]


def _benchmark_actions(simulator: NetworkSimulator, batch: int, number: int) -> Tensor:
    """Some actions, others every frame: int64 [b] or float [b, size]."""
    seed, space = fold_in(torch.arange(batch, device=simulator.device), number), simulator.spec.actions
    if space.is_discrete:
        return seed.remainder(space.size)
    places = torch.arange(space.size, device=simulator.device)
    return torch.sin(seed[:, None].remainder(1000).float() + places)


# --------------------------------------------------------------------------------------------------- data


def benchmark_data(
    data: str,
    clip_length: int = 16,
    batch_size: int = 8,
    workers: int = 0,
    batches: int = 200,
    repeats: int = 5,
    shard_limit: int = 4,
) -> None:
    """Clips a second of the loader, against a plain WebDataset pipeline that decodes with decord.

    The plain pipeline is what WebDataset's users write: shuffled shards, a shuffle buffer, one random clip a sample,
    batches. It reads mp4, so shards of raw frames get a twin with the same episodes as H.264 (GOP 12); the loader is
    timed on both.

    Args:
        data: a folder of shards on this machine, or a tar.
        clip_length: frames a clip.
        batch_size: clips a batch.
        workers: reading processes, of either.
        batches: batches a repeat, after warm-up.
        repeats: rounds in which the contestants take turns.
        shard_limit: use the first shards only, since the twin is written anew each time; 0 uses all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folders = _stage_shards(data, Path(scratch), shard_limit)
        video = folders["mp4"]
        _print_data_settings(video, clip_length, batch_size, workers, batches)
        contestants: dict[str, Callable[[], Iterator[Any]]] = {
            "webdataset + decord, mp4": lambda: _baseline_batches(video, clip_length, batch_size, workers)
        }
        for kind, folder in folders.items():
            contestants[f"vwm, {kind}"] = lambda f=folder: _cycle(_make_loader(f, clip_length, batch_size, workers))  # type: ignore[misc]
        speeds = _time_data(contestants, batches, batch_size, workers, repeats)
        plain = float(np.median(speeds["webdataset + decord, mp4"]))
        for name, clips in speeds.items():
            print(f"{name:26} {_format_timings(clips, 1, 'clips/s')}, {np.median(clips) / plain:.2f} x plain")
        for kind, folder in folders.items():
            print(_time_resume(folder, kind, clip_length, batch_size, workers, plain))


def _stage_shards(shards: str, scratch: Path, limit: int) -> dict[str, Path]:
    """Folders of the shards to read: as they are (by links), and their twin as mp4 where they are raw."""
    paths = list_shards(shards)[: limit or None]
    if any("://" in path for path in paths):
        raise ValueError(f"{shards}: the bench reads this machine's files; download the shards first")
    folder = scratch / "given"
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
    for path in paths:
        with ShardWriter(scratch / "twin" / Path(path).name) as writer:
            for sample in webdataset.WebDataset(path, shardshuffle=False):
                frames = np.load(io.BytesIO(sample.pop("frames.npy")))
                fixed = {k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")}
                writer.write_sample({**fixed, "mp4": encode_video(frames, fps=15)})
    print(f"wrote the mp4 twin of {len(paths)} shards in {time.perf_counter() - start:.0f} s")
    return {"raw": folder, "mp4": scratch / "twin"}


def _print_data_settings(folder: Path, clip_length: int, batch_size: int, workers: int, batches: int) -> None:
    indices = [load_shard_index(path) for path in list_shards(folder)]
    episodes = [episode for index in indices for episode in index.episodes]
    kinds = sorted({m for e in episodes for m in e.members})
    print(
        f"{len(indices)} shards, {len(episodes)} episodes of {np.mean([e.frames for e in episodes]):.0f} frames on "
        f"average, {episodes[0].height}x{episodes[0].width} pixels ({', '.join(kinds)}); clips of {clip_length} "
        f"frames, batches of {batch_size}, {workers} workers, {batches} batches a repeat, {os.cpu_count()} cores"
    )


def _make_loader(folder: Path, clip_length: int, batch_size: int, workers: int) -> ClipLoader:
    return ClipLoader(make_clip_dataset(str(folder), clip_length), batch_size, workers=workers)


def _cycle(loader: ClipLoader) -> Iterator[Any]:
    while True:
        yield from loader


def _baseline_batches(folder: Path, clip_length: int, batch_size: int, workers: int) -> Iterator[Any]:
    """The plain pipeline. The buffer holds undecoded samples, which is the cheaper side to shuffle on."""
    paths = list_shards(folder)
    if len(paths) < workers:
        raise ValueError(f"WebDataset gives each of {workers} workers shards of its own, but there are {len(paths)}")
    data = webdataset.WebDataset(paths, shardshuffle=len(paths)).repeat().shuffle(100)
    data = data.map(lambda sample: _baseline_clip(sample, clip_length)).select(lambda clip: clip is not None)
    return iter(webdataset.WebLoader(data.batched(batch_size), batch_size=None, num_workers=workers))


def _baseline_clip(sample: dict[str, Any], clip_length: int) -> tuple[NDArray[Any], ...] | None:
    """A random clip of a sample: its frames, and its actions where there are some."""
    import decord

    video = next(sample[extension] for extension in VIDEO_EXTENSIONS if extension in sample)
    reader = decord.VideoReader(io.BytesIO(video), num_threads=1)
    if len(reader) < clip_length:
        return None
    start = random.randrange(len(reader) - clip_length + 1)
    frames = reader.get_batch(range(start, start + clip_length)).asnumpy()
    if "actions.npy" not in sample:
        return (frames,)
    return frames, np.load(io.BytesIO(sample["actions.npy"]))[start : start + clip_length]


def _time_data(
    contestants: dict[str, Callable[[], Iterator[Any]]], batches: int, batch_size: int, workers: int, repeats: int
) -> dict[str, list[float]]:
    """Clips a second of each contestant and repeat; each begins anew and warms up before its time counts."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, start in contestants.items():
            frame_reading._packet_table.cache_clear()  # as in a first epoch
            iterator = start()
            for _ in islice(iterator, 4 + 4 * workers):  # more than is read ahead
                pass
            began = time.perf_counter()
            for _ in islice(iterator, batches):
                pass
            speeds[name].append(batches * batch_size / (time.perf_counter() - began))
            del iterator  # ends its workers
    return speeds


def _time_resume(folder: Path, kind: str, clip_length: int, batch_size: int, workers: int, plain: float) -> str:
    """Seconds from ``load_state_dict`` to the first batch."""
    at = 10_000
    state = {**_make_loader(folder, clip_length, batch_size, workers).state_dict(), "global_batches": at}
    seconds: list[float] = []
    for _ in range(3):
        loader = _make_loader(folder, clip_length, batch_size, workers)
        with _measure_seconds(seconds, torch.device("cpu")):
            loader.load_state_dict(state)
            next(iter(loader))
    return (
        f"resume at batch {at:,}, {kind:4}: {np.median(seconds):.3f} s to the first batch (epoch {at // len(loader)} "
        f"of {len(loader)} batches); replay in the plain pipeline, extrapolated: {at * batch_size / plain:.0f} s"
    )


# --------------------------------------------------------------------------------------------------- timing


@contextmanager
def _limit_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _measure_seconds(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the seconds that the block takes, the accelerator's work included."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - start)


def _format_timings(values: list[float], scale: float, unit: str) -> str:
    low, first, median, third, high = np.percentile(np.array(values) * scale, (5, 25, 50, 75, 95))
    return (
        f"median {median:.1f} {unit} (quartiles {first:.1f}-{third:.1f}, p5-p95 {low:.1f}-{high:.1f}, n={len(values)})"
    )
