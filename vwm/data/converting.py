"""`vwm convert`: write shards as a data set of another project.

Each shard becomes files of its own, which appear when they are complete. An interrupted conversion continues with the
missing ones, a finished one adds new shards, and the result does not depend on the number of worker processes.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from vwm.core.atomic_files import atomic_write_text, remove_folder_leftovers
from vwm.core.command_output import format_count, print_output, progress_bar
from vwm.core.folder_lock import lock_folder
from vwm.core.json_files import read_json_object
from vwm.core.limits import MAX_FPS
from vwm.data.exporters.dataset_exporter import DatasetExporter, ExportShard
from vwm.data.shard_index import list_shards, load_shard_indices
from vwm.data.workers import run_jobs

ConvertKind = Literal["lerobot", "webdataset"]

MANIFEST = "convert.json"

_EXPORTERS = {
    "lerobot": "vwm.data.exporters.lerobot:LeRobotExporter",
    "webdataset": "vwm.data.exporters.webdataset:WebDatasetExporter",
}


def convert_dataset(kind: ConvertKind, data: Path, out: Path, fps: float | None = None, workers: int = 2) -> None:
    """Write shards as a data set of another project, with actions, rewards, states, instructions and time stamps.

    Run it again to continue after an interruption, or to add new shards. Continuous actions are written in the units of
    the data set that they come from, where the metadata state their bounds; cameras that an import has put side by side
    become several videos again.

    Args:
        kind: format of the result: lerobot (version 3.0), webdataset (tars with videos, an npz and a JSON file an
            episode).
        data: folder of shards.
        out: folder for the result.
        fps: frames per second, where the shards do not state them.
        workers: number of processes; 0 converts in this one. The result does not depend on it.

    Raises:
        ValueError: a setting is invalid, ``out`` holds something else, or an episode cannot be read or does not fit.
        ImportError: the format's library is not installed.
    """
    if kind not in _EXPORTERS:
        raise ValueError(f"kind must be one of {', '.join(get_args(ConvertKind))}, got {kind}")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {fps:g}")
    paths = list_shards(data)
    indices = load_shard_indices(paths)
    shards = _number_shards(paths, [index.episodes for index in indices])
    if not shards:
        raise ValueError(f"{data}: its shards have no episodes")
    manifest = {"kind": kind, "fps": fps, "shards": [index.hash for index in indices]}
    _check_target(out, manifest)
    exporter = _make_exporter(kind, out, shards, fps)
    with lock_folder(out, "conversion"):
        remove_folder_leftovers(out)
        atomic_write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        pending = [shard for shard in shards if not exporter.is_written(shard)]
        if pending:
            exporter.begin()
        with progress_bar(total=len(pending), unit="shard", desc="convert") as bar:
            for _ in run_jobs(exporter.write, pending, workers):
                bar.update(1)
        exporter.finish()
    episodes, frames = sum(len(shard.episodes) for shard in shards), sum(shard.frames for shard in shards)
    new = f" ({format_count(len(pending), 'shard')} new)" if len(pending) < len(shards) else ""
    print_output(out, f"{frames} frames in {format_count(episodes, 'episode')}{new}")


def _make_exporter(kind: str, out: Path, shards: list[ExportShard], fps: float | None) -> DatasetExporter:
    module, name = _EXPORTERS[kind].split(":")
    exporter: DatasetExporter = getattr(importlib.import_module(module), name)(out, shards, fps)
    return exporter


def _number_shards(paths: list[str], episodes: list[Any]) -> list[ExportShard]:
    """Return the shards that have episodes, with what lies before each."""
    shards: list[ExportShard] = []
    first_episode = first_frame = 0
    for path, entries in zip(paths, episodes, strict=True):
        if entries:
            shards.append(ExportShard(path, len(shards), first_episode, first_frame, tuple(entries)))
            first_episode += len(entries)
            first_frame += shards[-1].frames
    return shards


def _check_target(out: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError where a folder holds something else than the beginning of this conversion."""
    path = out / MANIFEST
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
            raise ValueError(f"{out}: exists, and `vwm convert` did not write it. Choose another folder.")
        return
    earlier = read_json_object(path)
    for name in ("kind", "fps"):
        if earlier.get(name) != manifest[name]:
            raise ValueError(
                f"{path}: {name} was {earlier.get(name)!r} and is now {manifest[name]!r}. Choose another folder."
            )
    written = earlier.get("shards")
    if not isinstance(written, list) or manifest["shards"][: len(written)] != written:
        raise ValueError(f"{path}: was converted from other shards. Choose another folder.")
