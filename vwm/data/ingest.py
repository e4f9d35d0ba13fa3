"""Ingest a folder of videos: plan shards, map the work over them, and report.

Videos are assigned to shards before any is opened, and the manifest ``ingest.json`` stores this assignment. An
interrupted ingest therefore continues with the missing shards, a finished one does nothing when it is run again, new
files get new shards, and a shard is written again if one of its files has changed.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vwm.core.atomic_files import remove_folder_leftovers
from vwm.core.folder_lock import lock_folder
from vwm.data.clip_models import ClipModel, forget_clip_models
from vwm.data.clip_tables import CLIP_TABLES, remove_stale_tables
from vwm.data.curation_report import write_curation_report
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
from vwm.data.shard_manifest import map_shards
from vwm.data.workers import JobRunner, run_jobs


class IngestEngine(NamedTuple):
    """What runs the work of an ingest.

    Attributes:
        decoding: runs jobs that decode.
        models: runs jobs that load models; where there are GPUs, each of its processes has one.
    """

    decoding: JobRunner
    models: JobRunner


def choose_engine(engine: str, ray_address: str | None, workers: int) -> IngestEngine:
    """Return an engine by its name, ``local`` or ``ray``.

    Raises:
        ValueError: an address without Ray.
    """
    if engine == "ray":
        run = functools.partial(run_ray_jobs, address=ray_address, workers=workers)
        return IngestEngine(decoding=run, models=functools.partial(run, keeps_state=True))
    if ray_address is not None:
        raise ValueError(f"--ray-address {ray_address} requires --engine ray")
    local = functools.partial(run_jobs, workers=workers)
    return IngestEngine(decoding=local, models=local)


@dataclass(frozen=True)
class IngestOutcome:
    """What an ingest did.

    Attributes:
        files: the videos; see ``find_videos``.
        unreadable: folders that could not be read, with the reason.
        shards: all shards.
        new: those that were written.
        report: page of the report of what filters removed; None without filters.
        seconds: that it took.
    """

    files: dict[str, list[int]]
    unreadable: dict[str, str]
    shards: list[IngestShard]
    new: list[IngestShard]
    report: Path | None
    seconds: float


def ingest_folder(
    settings: IngestSettings, out: Path, engine: IngestEngine, models: Sequence[ClipModel] = (), timeout: float = 60.0
) -> IngestOutcome:
    """Write the shards of a folder of videos that are missing.

    Args:
        settings: what is written.
        out: folder for the shards.
        engine: runs the work.
        models: add to the clips; ``settings.models`` names them.
        timeout: seconds without a new frame after which a video is abandoned.

    Raises:
        ValueError: the folder has no videos, or ``out`` was made with other settings.
    """
    files, unreadable = find_videos(Path(settings.folder))
    start = time.monotonic()
    with lock_folder(out, "ingest"):
        for place in (out, out / STAGING, out / CLIP_TABLES):
            remove_folder_leftovers(place)
        shards, new = _ingest_pending_shards(out, settings, files, engine, models, timeout)
        report = None if settings.curation is None else write_curation_report(out, settings, shards, files)
        remove_stale_tables(out, {shard.name for shard in shards})
        save_manifest(out, settings, shards, finished=True)
    return IngestOutcome(files, unreadable, shards, new, report, time.monotonic() - start)


def _ingest_pending_shards(
    out: Path,
    settings: IngestSettings,
    files: dict[str, list[int]],
    engine: IngestEngine,
    models: Sequence[ClipModel],
    timeout: float,
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
        engine.decoding,
    )
    if settings.has_second_pass:
        settle_duplicates(out, settings, shards)
        save_manifest(out, settings, shards)  # before any shard is published: what is a duplicate never changes
        publish = functools.partial(publish_shard, out, tuple(models))
        _map_shards(out, settings, shards, lambda s: s.decoded, publish, engine.models if models else engine.decoding)
        forget_clip_models()
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
    save = functools.partial(save_manifest, out, settings, shards)
    pending = [shard for shard in shards if is_pending(shard)]
    map_shards(shards, pending, function, run, save, lambda shard: len(shard.files), "video", "ingest")
