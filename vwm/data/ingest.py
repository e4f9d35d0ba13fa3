"""`vwm ingest`: a folder of anybody's videos, with or without actions, becomes shards.

Videos are dealt out to shards before any is opened, and the manifest ``ingest.json`` remembers who went where.
Hence an interrupted ingest goes on with the shards that are missing, a finished one does nothing when run again,
files that came later get shards of their own, and a shard is made anew when one of its files has changed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.data.video import VIDEO_EXTENSIONS, call_with_timeout, iterate_frames, open_video, probe_video
from vwm.data.workers import run_jobs

INGEST_MANIFEST = "ingest.json"
MAX_EPISODE_BYTES = 512 * 2**20
"""An episode also ends when its frames fill this much memory: a thousand frames of full HD are six gigabytes."""
TIMESTAMP_TOLERANCE = 1e-3
"""Seconds by which a time stamp may be off: Matroska rounds them to milliseconds."""


@dataclass(frozen=True)
class IngestSettings:
    """Everything beside the videos that decides what the shards hold."""

    folder: str
    height: int | None
    width: int | None
    fps: float | None
    clip_length: int
    videos_per_shard: int


@dataclass
class IngestShard:
    """The unit of work.

    Attributes:
        name: of the tar.
        files: path in the folder to the sizes and time stamps of the video and its actions, as they were then.
        done: it is written, or found to hold nothing.
        frames, episodes: what it holds.
        skipped: videos that gave nothing, with the reason.
        noted: videos that gave less than they promise, with the reason.
    """

    name: str
    files: dict[str, list[int]]
    done: bool = False
    frames: int = 0
    episodes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)


def ingest_videos(
    folder: Path,
    out: Path,
    size: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    clip_length: int = 1_000,
    videos_per_shard: int = 8,
    workers: int = 2,
    timeout: float = 60.0,
) -> None:
    """Turn a folder of videos into shards. Run it again to go on after an interruption, or to add new videos.

    Beside ``walk.mp4``, a file ``walk.actions.npy`` ([T] integers, or [T, A] floats in [-1, 1]) or
    ``walk.actions.csv`` (one row a frame) holds the action taken at every frame of the video.

    Args:
        folder: searched for mp4, webm, mkv, mov, avi and m4v, also in its subfolders.
        out: folder for the shards.
        size: side of square frames, in pixels: resized to cover the square, then cropped around the centre.
        height: of the frames, with --width, for frames that are not square.
        width: of the frames.
        fps: frames a second to resample to, by time stamps; by default every frame is kept.
        clip_length: frames after which an episode is cut and the next begins.
        videos_per_shard: videos a shard; shards are also what is held out for validation.
        workers: processes that decode; 0 decodes in this one. The number changes nothing in the result.
        timeout: seconds without a new frame after which a video is given up.

    Raises:
        ValueError: a setting makes no sense, ``out`` was made with other settings, or no video could be read.
    """
    from tqdm import tqdm

    settings = _make_settings(folder, size, height, width, fps, clip_length, videos_per_shard)
    files = find_videos(folder)
    shards = assign_videos_to_shards(_load_manifest(out, settings), files, videos_per_shard)
    _save_manifest(out, settings, shards)
    todo = [s for s in shards if not s.done]
    began = time.monotonic()
    with tqdm(total=sum(len(s.files) for s in todo), unit="video", desc="ingest", disable=None) as bar:
        for shard, finished in run_jobs(functools.partial(ingest_shard, settings, out, timeout), todo, workers):
            shards[shards.index(shard)] = finished
            _save_manifest(out, settings, shards)
            bar.update(len(shard.files))
    new = [s for s in shards if s.name in {t.name for t in todo}]
    _print_summary(out, shards, new, time.monotonic() - began)
    if not any(s.episodes for s in shards):
        raise ValueError(f"{folder}: none of its {len(files)} videos could be read; the reasons are listed above")


def _make_settings(
    folder: Path,
    size: int | None,
    height: int | None,
    width: int | None,
    fps: float | None,
    clip_length: int,
    videos_per_shard: int,
) -> IngestSettings:
    if size is not None and (height is not None or width is not None):
        raise ValueError(f"give size ({size}) or height and width ({height}, {width}), not both")
    if (height is None) != (width is None):
        raise ValueError(f"height and width go together, got height {height} and width {width}")
    height, width = (size, size) if size is not None else (height, width)
    for name, value in (("height", height), ("width", width), ("fps", fps), ("videos_per_shard", videos_per_shard)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if clip_length < 2:
        raise ValueError(f"clip_length must be 2 or more (one frame shows no motion), got {clip_length}")
    return IngestSettings(str(Path(folder).resolve()), height, width, fps, clip_length, videos_per_shard)


# --------------------------------------------------------------------------------------------- the manifest


def find_videos(folder: Path) -> dict[str, list[int]]:
    """Path in the folder to [bytes, time of change in ns] of the video and of its actions, sorted by path.

    Raises:
        ValueError: the folder does not exist or has no videos.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: is no folder")
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in VIDEO_EXTENSIONS and p.is_file()):
        parts = [path, *(a for a in _action_paths(path) if a.exists())]
        found[path.relative_to(folder).as_posix()] = [
            n for p in parts for n in (p.stat().st_size, p.stat().st_mtime_ns)
        ]
    if not found:
        raise ValueError(f"{folder}: has no videos; looked for files ending in {', '.join(VIDEO_EXTENSIONS)}")
    return found


def assign_videos_to_shards(
    shards: list[IngestShard], files: dict[str, list[int]], videos_per_shard: int
) -> list[IngestShard]:
    """Deal files out to shards: known ones stay, changed ones have their shard made anew, new ones get new shards."""
    planned = []
    for shard in shards:
        now = {path: files.get(path, stamp) for path, stamp in shard.files.items()}
        planned.append(shard if now == shard.files else IngestShard(shard.name, now))
    known = {path for shard in shards for path in shard.files}
    new = [path for path in files if path not in known]
    for start in range(0, len(new), videos_per_shard):
        group = {path: files[path] for path in new[start : start + videos_per_shard]}
        planned.append(IngestShard(f"shard-{len(planned):06d}.tar", group))
    return planned


def _load_manifest(out: Path, settings: IngestSettings) -> list[IngestShard]:
    """The shards of the manifest.

    Raises:
        ValueError: shards of other settings, or of unknown origin.
    """
    path = out / INGEST_MANIFEST
    if not path.exists() and any(out.glob("*.tar")):
        raise ValueError(
            f"{out}: has shards but no {INGEST_MANIFEST}, so they came from elsewhere. Choose another folder."
        )
    if not any(out.glob("*.tar")):  # nothing came of it so far, whatever the settings were
        return []
    found = json.loads(path.read_text())
    wanted = asdict(settings)
    if found["settings"] != wanted:
        changes = ", ".join(
            f"{k} was {found['settings'].get(k)!r} and is now {wanted[k]!r}"
            for k in wanted
            if found["settings"].get(k) != wanted[k]
        )
        raise ValueError(f"{path}: the shards there were made with other settings ({changes}). Choose another folder.")
    shards = [IngestShard(**s) for s in found["shards"]]
    for shard in shards:
        shard.done &= not shard.episodes or (out / shard.name).exists()
    return shards


def _save_manifest(out: Path, settings: IngestSettings, shards: list[IngestShard]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    aside = out / (INGEST_MANIFEST + ".tmp")
    aside.write_text(json.dumps({"settings": asdict(settings), "shards": [asdict(s) for s in shards]}, indent=1) + "\n")
    aside.replace(out / INGEST_MANIFEST)


def _print_summary(out: Path, shards: list[IngestShard], new: list[IngestShard], seconds: float) -> None:
    frames, episodes = sum(s.frames for s in new), sum(s.episodes for s in new)
    if new:
        print(f"{out}: {frames} frames in {episodes} episodes, {len(new)} shards, {frames / seconds:.0f} frames/s")
    else:
        print(f"{out}: every video is in already. Nothing to do.")
    for title, tables in (("cut short", [s.noted for s in shards]), ("skipped", [s.skipped for s in shards])):
        rows = [(path, reason) for table in tables for path, reason in table.items()]
        if rows:
            print(f"{title} ({len(rows)}):")
            width = max(len(path) for path, _ in rows)
            for path, reason in rows:
                print(f"  {path:<{width}}  {reason}")


# ------------------------------------------------------------------------------------------------- the work


def ingest_shard(settings: IngestSettings, out: Path, timeout: float, shard: IngestShard) -> IngestShard:
    """Decode a shard's videos and write it; a shard of which no video can be read is not written."""
    result = IngestShard(shard.name, shard.files, done=True)
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for number, path in enumerate(shard.files):
            for clip, episode in enumerate(iterate_video_episodes(settings, path, result, timeout)):
                writer = writer or stack.enter_context(ShardWriter(out / shard.name))
                writer.write(f"{shard.name[6:12]}-{number:04d}-{clip:05d}", episode)
                result.frames += len(episode)
                result.episodes += 1
    if not result.episodes:
        for stale in (out / shard.name, out / shard.name.replace(".tar", ".index.json")):
            stale.unlink(missing_ok=True)
    return result


def iterate_video_episodes(
    settings: IngestSettings, path: str, result: IngestShard, timeout: float
) -> Iterator[Episode]:
    """Yield a video's episodes; what goes wrong with it is written into ``result``, never raised."""
    video = Path(settings.folder) / path
    frames: list[NDArray[np.uint8]] = []
    numbers: list[int] = []
    taken, problem = 0, ""
    try:
        actions = read_action_file(video)
        rate, promised, count = call_with_timeout(
            lambda: _probe_rate_and_duration(video, path, actions is not None), timeout
        )
        if actions is not None and len(actions) != count:
            raise ValueError(f"{path}: has {len(actions)} actions for {count} frames; there must be one a frame")
        for number, frame in iterate_with_timeout(
            _iterate_resized_frames(settings, video, path, rate, promised), timeout
        ):
            frames.append(frame)
            numbers.append(number)
            if len(frames) == settings.clip_length or len(frames) * frame.nbytes >= MAX_EPISODE_BYTES:
                yield _make_episode(settings, path, frames, numbers, actions, rate)
                taken += len(frames)
                frames, numbers = [], []
    except (ValueError, OSError, TimeoutError) as error:
        problem = str(error).removeprefix(f"{path}: ")
    if len(frames) >= 2:
        yield _make_episode(settings, path, frames, numbers, actions, rate)
        taken += len(frames)
    if taken == 0:
        result.skipped[path] = problem or "has fewer than 2 frames"
    elif problem:
        result.noted[path] = f"{taken} frames kept: {problem}"


def _probe_rate_and_duration(video: Path, path: str, count: bool) -> tuple[float, float, int]:
    """Mean frames a second, seconds that the header promises, and where asked for frames; 0 for what is unknown."""
    frames = probe_video(video, path)["frames"] if count else 0
    with open_video(video, path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.duration is not None and stream.time_base is not None:
            return rate, float(stream.duration * stream.time_base), frames
        return rate, (container.duration or 0) / 1e6, frames


def _iterate_resized_frames(
    settings: IngestSettings, video: Path, path: str, rate: float, promised: float
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode, resample and resize; yields (number of the source frame, frame uint8 [h, w, 3]).

    Raises:
        ValueError: a frame does not decode, or the video ends a second before its header says.
    """
    with open_video(video, path) as container:
        last = 0.0

        def numbered() -> Iterator[tuple[float, int, NDArray[np.uint8]]]:
            nonlocal last
            origin: float | None = None
            for number, (stamp, frame) in enumerate(iterate_frames(container, path)):
                if stamp is None and not rate and settings.fps is not None:
                    raise ValueError(f"{path}: has no time stamps and no rate, so --fps cannot resample it")
                seconds = stamp if stamp is not None else number / (rate or 1)
                origin = seconds if origin is None else origin
                last = seconds - origin
                yield last, number, frame

        chosen = numbered() if settings.fps is None else resample_frames(numbered(), settings.fps, rate)
        for _, number, frame in chosen:
            yield number, resize_and_crop(frame, settings.height, settings.width)
        if rate and last + 1 / rate + 1 < promised:
            raise ValueError(f"{path}: ends after {last + 1 / rate:.1f} s, its header promises {promised:.1f} s")


def resample_frames(
    frames: Iterable[tuple[float, int, NDArray[np.uint8]]], fps: float, rate: float
) -> Iterator[tuple[float, int, NDArray[np.uint8]]]:
    """At the times 0, 1/fps, 2/fps, ... the frame that a player shows then; some are left out, some repeated.

    Args:
        frames: (seconds since the first, number, frame) in order, at any spacing.
        fps: frames a second to yield.
        rate: mean rate of the input, which tells how long its last frame is shown.
    """
    k = 0
    shown: tuple[float, int, NDArray[np.uint8]] | None = None
    for upcoming in frames:
        while shown is not None and k / fps < upcoming[0] - TIMESTAMP_TOLERANCE:
            yield shown
            k += 1
        shown = upcoming
    while shown is not None and k / fps < shown[0] + 1 / (rate or fps) - TIMESTAMP_TOLERANCE:
        yield shown
        k += 1


def resize_and_crop(frame: NDArray[np.uint8], height: int | None, width: int | None) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to cover height x width, cropped around the centre; unchanged where these are None."""
    from PIL import Image

    if height is None or width is None or frame.shape[:2] == (height, width):
        return frame
    full_height, full_width = frame.shape[:2]
    scale = max(height / full_height, width / full_width)
    top, left = (full_height - height / scale) / 2, (full_width - width / scale) / 2
    box = (left, top, full_width - left, full_height - top)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX, box=box))


def _make_episode(
    settings: IngestSettings,
    path: str,
    frames: list[NDArray[np.uint8]],
    numbers: list[int],
    actions: NDArray[Any] | None,
    rate: float,
) -> Episode:
    meta: dict[str, Any] = {"source": path, "first_source_frame": numbers[0]}
    if settings.fps or rate:
        meta["fps"] = settings.fps or rate
    return Episode(np.stack(frames), None if actions is None else actions[numbers], meta=meta)


def iterate_with_timeout(frames: Iterator[tuple[int, Any]], seconds: float) -> Iterator[tuple[int, Any]]:
    """Run an iterator in a thread of its own; a decoder that hangs is left behind there.

    Raises:
        TimeoutError: no item came for this many seconds.
    """
    line: queue.Queue[tuple[tuple[int, Any] | None, Exception | None]] = queue.Queue(maxsize=16)

    def work() -> None:
        try:
            for item in frames:
                line.put((item, None))
            line.put((None, None))
        except Exception as error:  # noqa: BLE001  (handed over to the caller's thread)
            line.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            item, error = line.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the decoder gave no frame for {seconds:g} s and was given up") from None
        if error is not None:
            raise error
        if item is None:
            return
        yield item


# ------------------------------------------------------------------------------------------------- actions


def _action_paths(video: Path) -> tuple[Path, Path]:
    return video.with_suffix(".actions.npy"), video.with_suffix(".actions.csv")


def read_action_file(video: Path) -> NDArray[Any] | None:
    """The actions beside a video: int64 [T], or float32 [T, A] in [-1, 1]; None where there are none.

    Raises:
        ValueError: the file cannot be understood; the message names it.
    """
    binary, table = _action_paths(video)
    try:
        if binary.exists():
            values: NDArray[Any] = np.load(binary, allow_pickle=False)
        elif table.exists():
            values = _read_action_csv(table)
        else:
            return None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{binary.name if binary.exists() else table.name}: cannot be read ({error})") from error
    name = binary.name if binary.exists() else table.name
    if values.dtype.kind in "iub" and values.ndim == 1:
        if len(values) and int(values.min()) < 0:
            raise ValueError(f"{name}: discrete actions count from 0, found {values.min()}")
        return values.astype(np.int64)
    if values.dtype.kind in "iubf" and values.ndim in (1, 2):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: has values that are not finite")
        if len(values) and np.abs(values).max() > 1:
            raise ValueError(f"{name}: has values from {values.min():g} to {values.max():g}; scale them to [-1, 1]")
        return values.reshape(len(values), -1).astype(np.float32)
    raise ValueError(f"{name}: must hold integers [T] or numbers [T, A], not {values.dtype} {list(values.shape)}")


def _read_action_csv(path: Path) -> NDArray[Any]:
    """Rows of comma-separated numbers, with or without a heading; one column of whole numbers is discrete."""
    heading = next(iter(path.read_text().splitlines()), "")
    try:
        _ = [float(cell) for cell in heading.split(",")]
        skip = 0
    except ValueError:
        skip = 1
    values: NDArray[Any] = np.loadtxt(path, delimiter=",", ndmin=2, skiprows=skip)
    if values.shape[1] == 1 and np.array_equal(values, np.round(values)):
        values = values[:, 0].astype(np.int64)
    return values
