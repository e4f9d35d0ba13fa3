"""The manifest of an ingest, ``ingest.json``: which videos go into which shard, and the outcome for each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text
from vwm.data.action_files import action_file_paths
from vwm.data.shard_index import is_shard_complete
from vwm.data.video import VIDEO_EXTENSIONS

INGEST_MANIFEST = "ingest.json"


@dataclass(frozen=True)
class IngestSettings:
    """All settings, in addition to the videos, that determine the contents of the shards.

    Attributes:
        folder: the folder of the videos, as an absolute path.
        height, width: size of the frames in pixels; None keeps the size of each video.
        fps: frames per second to resample to; None keeps every frame.
        clip_length: maximum frames per episode.
        videos_per_shard: videos per shard.
    """

    folder: str
    height: int | None
    width: int | None
    fps: float | None
    clip_length: int
    videos_per_shard: int


@dataclass
class IngestShard:
    """A shard of an ingest: the unit of work.

    Attributes:
        name: file name of the tar.
        files: relative path of each video to the sizes and time stamps of the video and its action file, as of the
            time of planning.
        done: the shard is written, or was found to contain no readable video.
        frames, episodes: their numbers in the shard.
        skipped: videos without a single usable frame, with the reason.
        truncated: videos of which only the first frames could be used, with the reason.
    """

    name: str
    files: dict[str, list[int]]
    done: bool = False
    frames: int = 0
    episodes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, str] = field(default_factory=dict)


def find_videos(folder: Path) -> dict[str, list[int]]:
    """Find the videos of a folder and its subfolders.

    Returns:
        Relative path to [size in bytes, modification time in ns] of the video and of its action files, sorted by path.

    Raises:
        ValueError: the folder does not exist or has no videos.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder")
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in VIDEO_EXTENSIONS and p.is_file()):
        files = [path, *(a for a in action_file_paths(path) if a.exists())]
        found[path.relative_to(folder).as_posix()] = [
            n for p in files for n in (p.stat().st_size, p.stat().st_mtime_ns)
        ]
    if not found:
        raise ValueError(f"{folder}: has no videos; looked for files ending in {', '.join(VIDEO_EXTENSIONS)}")
    return found


def assign_videos_to_shards(
    shards: list[IngestShard], files: dict[str, list[int]], videos_per_shard: int
) -> list[IngestShard]:
    """Assign videos to shards.

    Known videos keep their shard, a shard with a changed video is written again, and new videos get new shards.
    """
    planned = []
    for shard in shards:
        current = {path: files.get(path, stamp) for path, stamp in shard.files.items()}
        planned.append(shard if current == shard.files else IngestShard(shard.name, current))
    known = {path for shard in shards for path in shard.files}
    new = [path for path in files if path not in known]
    for start in range(0, len(new), videos_per_shard):
        group = {path: files[path] for path in new[start : start + videos_per_shard]}
        planned.append(IngestShard(f"shard-{len(planned):06d}.tar", group))
    return planned


def load_manifest(out: Path, settings: IngestSettings) -> list[IngestShard]:
    """Load the shards of the manifest; none if no shard has been written yet.

    Raises:
        ValueError: the shards were written with other settings, or not by an ingest.
    """
    path = out / INGEST_MANIFEST
    if not any(out.glob("*.tar")):
        return []
    if not path.exists():
        raise ValueError(
            f"{out}: has shards but no {INGEST_MANIFEST}: `vwm ingest` did not write them. Choose another folder."
        )
    found = json.loads(path.read_text())
    expected = asdict(settings)
    if found["settings"] != expected:
        changes = ", ".join(
            f"{key} was {found['settings'].get(key)!r} and is now {expected[key]!r}"
            for key in expected
            if found["settings"].get(key) != expected[key]
        )
        raise ValueError(f"{path}: these shards were made with other settings ({changes}). Choose another folder.")
    shards = [IngestShard(**s) for s in found["shards"]]
    for shard in shards:
        shard.done &= not shard.episodes or is_shard_complete(out / shard.name)
    return shards


def save_manifest(out: Path, settings: IngestSettings, shards: list[IngestShard]) -> None:
    """Write the manifest, atomically."""
    content = {"settings": asdict(settings), "shards": [asdict(s) for s in shards]}
    atomic_write_text(out / INGEST_MANIFEST, json.dumps(content, indent=1) + "\n")
