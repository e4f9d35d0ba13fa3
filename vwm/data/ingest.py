"""`vwm ingest`: convert a folder of videos, with or without actions, to shards.

Videos are assigned to shards before any is opened, and the manifest ``ingest.json`` stores this assignment. An
interrupted ingest therefore continues with the missing shards, a finished one does nothing when it is run again, new
files get new shards, and a shard is written again if one of its files has changed.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vwm.core.atomic_files import remove_folder_leftovers
from vwm.core.command_output import format_count, format_training, print_output, progress_bar
from vwm.core.folder_lock import lock_folder
from vwm.core.limits import MAX_FPS, MAX_FRAME_SIDE
from vwm.data.clip_tables import CLIP_TABLES, remove_stale_tables
from vwm.data.curation.filters import CurationSettings, make_curation
from vwm.data.curation_report import count_removed, write_curation_report
from vwm.data.ingest_manifest import (
    STAGING,
    IngestSettings,
    IngestShard,
    assign_videos_to_shards,
    find_videos,
    load_manifest,
    save_manifest,
    was_interrupted,
)
from vwm.data.ray_jobs import run_ray_jobs
from vwm.data.workers import JobRunner, run_jobs

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
    shots: str | None = None,
    measure: list[str] | None = None,
    remove: list[str] | None = None,
    videos_per_shard: int = 8,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    workers: int = 2,
    timeout: float = 60.0,
) -> None:
    """Convert a folder of videos to shards. Run it again to continue after an interruption, or to add new videos.

    A file ``walk.actions.npy`` ([T] integers, or [T, A] floats in [-1, 1]) or ``walk.actions.csv`` (one row per frame)
    next to ``walk.mp4`` holds the action taken at every frame of the video. The header of the CSV file, or
    ``walk.actions.json``, states the parts of composite actions; see ``vwm.data.action_files``.

    No clip is removed unless ``--remove`` names a filter: black (black frames), frozen (frames that repeat), motion
    (too little of it), text (laid over the picture), duplicates (clips that nearly repeat another one). A report with
    counts and pictures says what was removed.

    Args:
        folder: folder of videos (mp4, webm, mkv, mov, avi, m4v), searched with its subfolders.
        out: folder for the shards.
        size: side of square frames, in pixels: frames are resized to cover the square and cropped around the center.
        height: height of frames that are not square, with --width.
        width: width of frames that are not square, with --height.
        fps: frames per second to resample to, by time stamps; by default every frame is kept.
        clip_length: maximum frames per episode; longer videos are cut into several episodes.
        shots: detect cuts, so that no clip spans one; by default videos are cut at clip_length only.
        measure: measures of clips to store with them, of black, frozen, motion and text.
        remove: filters that remove clips, with their default limits or others: black,frozen=0.8,duplicates.
        videos_per_shard: videos per shard.
        engine: local processes, or Ray Data. Both give the same bytes.
        ray_address: of a Ray cluster whose machines see the same folders; by default Ray is started on this machine.
        workers: number of processes that decode; 0 decodes in this one. The result does not depend on it.
        timeout: seconds without a new frame after which a video is abandoned.

    Raises:
        ValueError: a setting is invalid, ``out`` was made with other settings, or no video could be read.
    """
    curation = make_curation(shots, measure, remove)
    settings = _make_settings(folder, size, height, width, fps, clip_length, videos_per_shard, curation)
    run = _choose_engine(engine, ray_address, workers)
    files, unreadable = find_videos(folder)
    start = time.monotonic()
    with lock_folder(out, "ingest"):
        for place in (out, out / STAGING, out / CLIP_TABLES):
            remove_folder_leftovers(place)
        shards, new = _ingest_pending_shards(out, settings, files, run, timeout)
        report = None if curation is None else write_curation_report(out, settings, shards, files)
        remove_stale_tables(out, {shard.name for shard in shards})
        save_manifest(out, settings, shards, finished=True)
    seconds = time.monotonic() - start
    _print_table("truncated", {path: reason for s in shards for path, reason in s.truncated.items()})
    _print_table("skipped", {path: reason for s in shards for path, reason in s.skipped.items()})
    _print_table("folders that cannot be read", unreadable)
    kept = [path for s in shards for path in s.files if path not in files]
    _print_table("no longer there, kept in the shards", dict.fromkeys(kept, ""))
    if not any(s.episodes or s.removed for s in shards):
        raise ValueError(f"{folder}: none of its {len(files)} videos could be read; the reasons are listed above")
    if report is not None:
        _print_removed(shards, report)
    if not any(s.episodes for s in shards):
        raise ValueError(f"{folder}: the filters removed all clips of its {len(files)} videos; {report} shows them")
    _print_summary(out, new, seconds)


def _choose_engine(engine: str, ray_address: str | None, workers: int) -> JobRunner:
    if engine == "ray":
        return functools.partial(run_ray_jobs, address=ray_address, workers=workers)
    if ray_address is not None:
        raise ValueError(f"--ray-address {ray_address} requires --engine ray")
    return functools.partial(run_jobs, workers=workers)


def _ingest_pending_shards(
    out: Path, settings: IngestSettings, files: dict[str, list[int]], run: JobRunner, timeout: float
) -> tuple[list[IngestShard], list[IngestShard]]:
    """Ingest what is missing; return all shards, and the new ones."""
    from vwm.data.shard_ingest import ingest_shard, publish_shard, settle_duplicates  # they need PyAV

    known, retry_skipped = load_manifest(out, settings), not was_interrupted(out)
    shards = assign_videos_to_shards(known, files, settings.videos_per_shard, retry_skipped)
    save_manifest(out, settings, shards)
    pending = {s.name for s in shards if not s.done}
    _map_shards(
        out,
        settings,
        shards,
        lambda s: not (s.done or s.decoded),
        functools.partial(ingest_shard, settings, out, timeout),
        run,
    )
    if settings.has_second_pass:
        settle_duplicates(out, settings, shards)
        save_manifest(out, settings, shards)  # before any shard is published: what is a duplicate never changes
        _map_shards(out, settings, shards, lambda s: s.decoded, functools.partial(publish_shard, out), run)
        shutil.rmtree(out / STAGING, ignore_errors=True)
    return shards, [s for s in shards if s.name in pending]


def _map_shards(
    out: Path,
    settings: IngestSettings,
    shards: list[IngestShard],
    is_pending: Callable[[IngestShard], bool],
    function: Callable[[IngestShard], IngestShard],
    run: JobRunner,
) -> None:
    """Replace pending shards by what the function returns, and save the manifest from time to time."""
    pending = [s for s in shards if is_pending(s)]
    places = {shard.name: i for i, shard in enumerate(shards)}
    saved = time.monotonic()
    with (
        contextlib.ExitStack() as at_end,
        progress_bar(total=sum(len(s.files) for s in pending), unit="video", desc="ingest") as bar,
    ):
        at_end.callback(save_manifest, out, settings, shards)
        for shard, finished in run(function, pending):
            shards[places[shard.name]] = finished
            if time.monotonic() - saved > SAVE_SECONDS:  # a killed process writes again what the manifest lacks
                save_manifest(out, settings, shards)
                saved = time.monotonic()
            bar.update(len(shard.files))


def _make_settings(
    folder: Path,
    size: int | None,
    height: int | None,
    width: int | None,
    fps: float | None,
    clip_length: int,
    videos_per_shard: int,
    curation: CurationSettings | None,
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
        curation=curation,
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


def _print_removed(shards: list[IngestShard], report: Path) -> None:
    counts = count_removed(shards)
    kept, removed = sum(s.episodes for s in shards), sum(counts.values())
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"removed {removed} of {format_count(kept + removed, 'clip')}{f' ({listed})' if listed else ''}: {report}")


def _print_table(title: str, rows: dict[str, str]) -> None:
    if rows:
        names = {path: path.encode(errors="surrogateescape").decode(errors="replace") for path in rows}
        width = max(map(len, names.values()))
        print(f"{title} ({len(rows)}):")
        for path, reason in rows.items():
            print(f"  {names[path]:<{width}}  {reason.encode(errors='replace').decode()}".rstrip())
