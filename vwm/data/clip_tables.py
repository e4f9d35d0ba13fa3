"""The clip table of a shard: every clip that its videos gave, also those that a filter removed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text
from vwm.core.json_files import read_json_object

CLIP_TABLES = "clips"
"""Folder of the clip tables, in the folder of the shards."""


@dataclass(frozen=True)
class ClipRecord:
    """A clip, as it was cut.

    Attributes:
        key: name in the shard.
        source: path of the video, relative to the folder of the videos.
        first_frame, middle_frame: indices in the video of the clip's first and middle frame.
        frames: number of frames.
        fps: frames a second; 0 if unknown.
        scores: measures of the clip; see ``vwm.data.curation.filters``.
        hash: perceptual hash in hexadecimal; empty if clips are not compared, or the clip was removed.
        removed_by: name of the filter that removed the clip before clips were compared; empty if it was kept.
    """

    key: str
    source: str
    first_frame: int
    middle_frame: int
    frames: int
    fps: float
    scores: dict[str, float]
    hash: str = ""
    removed_by: str = ""


def clip_table_path(out: Path, shard_name: str) -> Path:
    """Path of the clip table of a shard."""
    return out / CLIP_TABLES / f"{shard_name.removesuffix('.tar')}.json"


def write_clip_table(out: Path, shard_name: str, records: list[ClipRecord]) -> None:
    """Write the clip table of a shard, atomically."""
    content = {"clips": [asdict(record) for record in records]}
    atomic_write_text(clip_table_path(out, shard_name), json.dumps(content, indent=1) + "\n")


def read_clip_table(out: Path, shard_name: str) -> Iterator[ClipRecord]:
    """Yield the clips of a shard.

    Raises:
        ValueError: the file is damaged.
    """
    path = clip_table_path(out, shard_name)
    try:
        yield from (ClipRecord(**record) for record in read_json_object(path)["clips"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no clip table ({error}): remove it, and ingest again") from error


def remove_stale_tables(out: Path, shard_names: Collection[str]) -> None:
    """Remove the tables of shards that are no longer planned: their videos are gone, or were tried again in others."""
    for path in (out / CLIP_TABLES).glob("*.json"):
        if f"{path.stem}.tar" not in shard_names:
            path.unlink()
