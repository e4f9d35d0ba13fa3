"""The manifest of an ingest, ``ingest.json``: which videos go into which shard, and the outcome for each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text
from vwm.core.json_files import read_json_object
from vwm.core.suggestions import suggest_sibling
from vwm.data.action_files import action_file_paths
from vwm.data.clip_tables import CLIP_TABLES, clip_table_path
from vwm.data.curation.filters import CurationSettings
from vwm.data.shard_index import is_shard_complete
from vwm.data.shard_manifest import read_manifest
from vwm.data.video_formats import VIDEO_EXTENSIONS

INGEST_MANIFEST = "ingest.json"
STAGING = "staging"
"""Folder, in the folder of the shards, of those that wait for the second pass. Readers do not look into it."""


@dataclass(frozen=True)
class IngestSettings:
    """All settings, in addition to the videos, that determine the contents of the shards.

    Attributes:
        folder: the folder of the videos, as an absolute path.
        height, width: size of the frames in pixels; None keeps the size of each video.
        fps: frames per second to resample to; None keeps every frame.
        clip_length: maximum frames per episode.
        videos_per_shard: videos per shard.
        curation: what is done with the clips in addition; None is nothing.
        models: what models add to every clip, to the fingerprint of the model; see ``vwm.data.clip_models``. Under
            ``"shots"`` that of the model which finds shots.
    """

    folder: str
    height: int | None
    width: int | None
    fps: float | None
    clip_length: int
    videos_per_shard: int
    curation: CurationSettings | None = None
    models: dict[str, str] = field(default_factory=dict)

    @property
    def has_second_pass(self) -> bool:
        """Whether shards are changed once more after all videos have been decoded."""
        return bool(self.models.keys() - {"shots"}) or self.compares_clips

    @property
    def compares_clips(self) -> bool:
        """Whether clips that repeat others are left out."""
        return self.curation is not None and self.curation.compares_clips


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
        removed: number of clips that each filter removed.
        decoded: the shard is written in the staging folder, and waits for the second pass.
        duplicates: key of each clip that is left out because it repeats another one, to the key of that one; None
            where clips have not been compared yet.
    """

    name: str
    files: dict[str, list[int]]
    done: bool = False
    frames: int = 0
    episodes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    truncated: dict[str, str] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    decoded: bool = False
    duplicates: dict[str, str] | None = None

    @property
    def number(self) -> int:
        """The number in the name of the shard."""
        return int(self.name[6:12])


def check_video_folder(folder: Path) -> None:
    """Raise ValueError where there is no such folder."""
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else f"there is no such folder{suggest_sibling(folder)}"
        raise ValueError(f"{folder}: {reason}; give a folder of videos")


def find_videos(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Find the videos of a folder and its subfolders, those behind links included.

    Returns:
        Relative path to [size in bytes, modification time in ns] of the video and of its action files, sorted by path;
        and the folders that could not be read, with the reason.

    Raises:
        ValueError: the folder has no videos.
    """
    found: dict[str, list[int]] = {}
    unreadable: dict[str, str] = {}
    for path in sorted(_walk_files(folder, unreadable)):
        if path.suffix[1:].lower() in VIDEO_EXTENSIONS:
            files = [path, *(a for a in action_file_paths(path) if a.exists())]
            found[path.relative_to(folder).as_posix()] = [
                n for p in files for n in (p.stat().st_size, p.stat().st_mtime_ns)
            ]
    if not found:
        listed = "".join(f"; {name}: {reason}" for name, reason in unreadable.items())
        raise ValueError(f"{folder}: has no videos; looked for files ending in {', '.join(VIDEO_EXTENSIONS)}{listed}")
    return found, unreadable


def _walk_files(folder: Path, unreadable: dict[str, str]) -> Iterator[Path]:
    """Yield the files below a folder; a folder that links lead to again is visited once."""

    def note(error: OSError) -> None:
        unreadable[Path(str(error.filename)).relative_to(folder).as_posix()] = str(error.strerror)

    visited: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        yield from (path for path in (Path(current) / name for name in names) if path.is_file())


def assign_videos_to_shards(
    shards: list[IngestShard], files: dict[str, list[int]], videos_per_shard: int, retry_skipped: bool = True
) -> list[IngestShard]:
    """Assign videos to shards.

    Known videos keep their shard, under their new names where they were renamed; a shard with a changed video is
    written again. New videos get new shards, as do those that were skipped before: the reason may have gone.

    Args:
        shards: of the manifest.
        files: what is there now; see ``find_videos``.
        videos_per_shard: videos of each new shard.
        retry_skipped: whether skipped videos that have not changed get a new shard, too. They do not where an
            interrupted ingest is continued, so that it ends as one that nothing interrupted.
    """
    new_names = _find_renamed(shards, files)
    planned = []
    for shard in shards:
        waiting = {} if retry_skipped else {p: r for p, r in shard.skipped.items() if files.get(p) == shard.files[p]}
        before = {path: stamp for path, stamp in shard.files.items() if path not in shard.skipped or path in waiting}
        now = {new_names.get(path, path): stamp for path, stamp in before.items()}
        if all(files.get(path, stamp) == stamp for path, stamp in now.items()):
            shard = replace(shard, files=now, skipped=waiting)
        else:
            shard = IngestShard(shard.name, {path: files[path] for path in now if path in files})
        if shard.files:
            planned.append(shard)
    known = {path for shard in planned for path in shard.files}
    new = [path for path in files if path not in known]
    number = max((int(shard.name[6:12]) + 1 for shard in planned), default=0)
    for start in range(0, len(new), videos_per_shard):
        group = {path: files[path] for path in new[start : start + videos_per_shard]}
        planned.append(IngestShard(f"shard-{number:06d}.tar", group))
        number += 1
    return planned


def _find_renamed(shards: list[IngestShard], files: dict[str, list[int]]) -> dict[str, str]:
    """Return the new names of videos that are gone, by their old ones: new files of the same size and time."""
    known = {path: stamp for shard in shards for path, stamp in shard.files.items()}
    gone = {path: stamp for path, stamp in known.items() if path not in files}
    new = [path for path in files if path not in known]
    renamed = {}
    for path, stamp in gone.items():
        same = [other for other in new if files[other] == stamp]
        if len(same) == 1 and list(gone.values()).count(stamp) == 1:
            renamed[path] = same[0]
    return renamed


def load_manifest(out: Path, settings: IngestSettings) -> list[IngestShard]:
    """Load the shards of the manifest; none if no shard has been written yet.

    Raises:
        ValueError: the shards were written with other settings, or not by an ingest.
    """
    path, staging = out / INGEST_MANIFEST, out / STAGING
    if not any(True for place in (out, staging) for _ in place.glob("*.tar")) and not (out / CLIP_TABLES).is_dir():
        return []
    if not path.exists():
        raise ValueError(
            f"{out}: has shards but no {INGEST_MANIFEST}: `vwm ingest` did not write them. Choose another folder."
        )
    shards = read_manifest(path, settings, "vwm ingest", IngestShard, earlier_defaults={"curation": None, "models": {}})
    for shard in shards:
        if settings.curation is not None and not clip_table_path(out, shard.name).is_file():
            shard.done = shard.decoded = False
        shard.done &= not shard.episodes or is_shard_complete(out / shard.name)
        shard.decoded &= not shard.episodes or _is_staged_or_published(out, shard)
    return shards


def _is_staged_or_published(out: Path, shard: IngestShard) -> bool:
    """Whether a decoded shard is in the staging folder, or has left it for the folder of the shards."""
    if is_shard_complete(out / STAGING / shard.name):
        return True
    return shard.duplicates is not None and is_shard_complete(out / shard.name)


def was_interrupted(out: Path) -> bool:
    """Whether the last ingest into a folder did not come to its end."""
    path = out / INGEST_MANIFEST
    return path.exists() and read_json_object(path).get("finished") is False


def save_manifest(out: Path, settings: IngestSettings, shards: list[IngestShard], finished: bool = False) -> None:
    """Write the manifest, atomically; ``finished`` says that nothing is left to do."""
    content = {"settings": asdict(settings), "finished": finished, "shards": [asdict(s) for s in shards]}
    atomic_write_text(out / INGEST_MANIFEST, json.dumps(content, indent=1) + "\n")
