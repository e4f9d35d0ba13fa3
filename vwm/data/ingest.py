"""`vwm ingest`: convert a folder of videos, with or without actions, to shards.

Videos are assigned to shards before any is opened, and the manifest ``ingest.json`` stores this assignment. An
interrupted ingest therefore continues with the missing shards, a finished one does nothing when it is run again, new
files get new shards, and a shard is written again if one of its files has changed.
"""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path

from vwm.core.atomic_files import remove_folder_leftovers
from vwm.core.command_output import format_count, format_training, print_output, progress_bar
from vwm.core.folder_lock import lock_folder
from vwm.core.limits import MAX_FPS, MAX_FRAME_SIDE
from vwm.data.ingest_manifest import (
    IngestSettings,
    IngestShard,
    assign_videos_to_shards,
    find_videos,
    load_manifest,
    save_manifest,
)
from vwm.data.workers import run_jobs

SAVE_SECONDS = 5.0
"""Time between two writes of the manifest, which lists all videos."""


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
    """Convert a folder of videos to shards. Run it again to continue after an interruption, or to add new videos.

    A file ``walk.actions.npy`` ([T] integers, or [T, A] floats in [-1, 1]) or ``walk.actions.csv`` (one row per frame)
    next to ``walk.mp4`` holds the action taken at every frame of the video. The header of the CSV file, or
    ``walk.actions.json``, states the parts of composite actions; see ``vwm.data.action_files``.

    Args:
        folder: folder of videos (mp4, webm, mkv, mov, avi, m4v), searched with its subfolders.
        out: folder for the shards.
        size: side of square frames, in pixels: frames are resized to cover the square and cropped around the center.
        height: height of frames that are not square, with --width.
        width: width of frames that are not square, with --height.
        fps: frames per second to resample to, by time stamps; by default every frame is kept.
        clip_length: maximum frames per episode; longer videos are cut into several episodes.
        videos_per_shard: videos per shard.
        workers: number of processes that decode; 0 decodes in this one. The result does not depend on it.
        timeout: seconds without a new frame after which a video is abandoned.

    Raises:
        ValueError: a setting is invalid, ``out`` was made with other settings, or no video could be read.
    """
    settings = _make_settings(folder, size, height, width, fps, clip_length, videos_per_shard)
    files, unreadable = find_videos(folder)
    start = time.monotonic()
    with lock_folder(out, "ingest"):
        remove_folder_leftovers(out)
        shards, new = _ingest_pending_shards(out, settings, files, workers, timeout)
    seconds = time.monotonic() - start
    _print_table("truncated", {path: reason for s in shards for path, reason in s.truncated.items()})
    _print_table("skipped", {path: reason for s in shards for path, reason in s.skipped.items()})
    _print_table("folders that cannot be read", unreadable)
    kept = [path for s in shards for path in s.files if path not in files]
    _print_table("no longer there, kept in the shards", dict.fromkeys(kept, ""))
    if not any(s.episodes for s in shards):
        raise ValueError(f"{folder}: none of its {len(files)} videos could be read; the reasons are listed above")
    _print_summary(out, new, seconds)


def _ingest_pending_shards(
    out: Path, settings: IngestSettings, files: dict[str, list[int]], workers: int, timeout: float
) -> tuple[list[IngestShard], list[IngestShard]]:
    """Ingest what is missing; return all shards, and the new ones."""
    from vwm.data.video_episodes import ingest_shard  # it needs PyAV

    videos_per_shard = settings.videos_per_shard
    shards = assign_videos_to_shards(load_manifest(out, settings), files, videos_per_shard)
    save_manifest(out, settings, shards)
    pending = [s for s in shards if not s.done]
    saved = time.monotonic()
    with (
        contextlib.ExitStack() as at_end,
        progress_bar(total=sum(len(s.files) for s in pending), unit="video", desc="ingest") as bar,
    ):
        at_end.callback(save_manifest, out, settings, shards)
        for shard, finished in run_jobs(functools.partial(ingest_shard, settings, out, timeout), pending, workers):
            shards[shards.index(shard)] = finished
            if time.monotonic() - saved > SAVE_SECONDS:  # a killed process writes again what the manifest lacks
                save_manifest(out, settings, shards)
                saved = time.monotonic()
            bar.update(len(shard.files))
    return shards, [s for s in shards if s.name in {p.name for p in pending}]


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
    if size is not None:
        height = width = size
    for name, value in (("height", height), ("width", width), ("fps", fps), ("videos_per_shard", videos_per_shard)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    sizes = (("height", height, MAX_FRAME_SIDE), ("width", width, MAX_FRAME_SIDE))
    for name, value, largest in (*sizes, ("fps", fps, MAX_FPS)):
        if value is not None and value > largest:  # more frames a second would only repeat some
            raise ValueError(f"{name} must be at most {largest}, got {value:g}")
    if clip_length < 2:
        raise ValueError(f"clip_length must be 2 or more (one frame shows no motion), got {clip_length}")
    return IngestSettings(
        folder=str(Path(folder).resolve()),
        height=height,
        width=width,
        fps=fps,
        clip_length=clip_length,
        videos_per_shard=videos_per_shard,
    )


def _print_summary(out: Path, new: list[IngestShard], seconds: float) -> None:
    frames = sum(s.frames for s in new)
    contents = "all videos are ingested already. Nothing to do."
    if new:
        episodes = sum(s.episodes for s in new)
        contents = (
            f"{frames} frames in {format_count(episodes, 'episode')}, {format_count(len(new), 'shard')}, "
            f"{frames / seconds:.0f} frames/s"
        )
    print_output(out, contents, format_training(out, out.name))


def _print_table(title: str, rows: dict[str, str]) -> None:
    if rows:
        names = {path: path.encode(errors="surrogateescape").decode(errors="replace") for path in rows}
        width = max(map(len, names.values()))
        print(f"{title} ({len(rows)}):")
        for path, reason in rows.items():
            print(f"  {names[path]:<{width}}  {reason.encode(errors='replace').decode()}".rstrip())
