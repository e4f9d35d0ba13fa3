"""The manifest of an import: which episodes belong to which shard, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text
from vwm.data.shard_index import is_shard_complete
from vwm.data.shard_manifest import read_manifest

IMPORT_MANIFEST = "import.json"


@dataclass(frozen=True)
class ImportSettings:
    """What the shards of an import are a function of.

    Attributes:
        kind: the format.
        source: the data set, as an absolute path.
        cameras: shown side by side.
        height, width: of the frames of each camera, in pixels; None keeps their size.
        clip_length: maximum frames per episode.
        fps: frames per second where the source does not state them.
        episodes_per_shard: episodes of the source per shard.
    """

    kind: str
    source: str
    cameras: tuple[str, ...]
    height: int | None
    width: int | None
    clip_length: int
    fps: float | None
    episodes_per_shard: int


@dataclass
class ImportShard:
    """A shard of an import: the unit of work.

    Attributes:
        name: file name of the tar.
        sources: names of the episodes of the source.
        done: the shard is written, or none of its episodes can be read.
        episodes, frames: their numbers in the shard.
        skipped: episodes of the source that cannot be read, with the reason.
    """

    name: str
    sources: list[str]
    done: bool = False
    episodes: int = 0
    frames: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def plan_shards(out: Path, settings: ImportSettings, names: Iterable[str]) -> list[ImportShard]:
    """Return the shards of the manifest, and new ones of the episodes that it does not have.

    Raises:
        ValueError: the folder's shards were made with other settings, or not by an import.
    """
    shards = _load_manifest(out, settings)
    known = {name for shard in shards for name in shard.sources}
    new = [name for name in names if name not in known]
    for start in range(0, len(new), settings.episodes_per_shard):
        sources = new[start : start + settings.episodes_per_shard]
        shards.append(ImportShard(f"shard-{len(shards):06d}.tar", sources))
    return shards


def save_import_manifest(out: Path, settings: ImportSettings, shards: list[ImportShard]) -> None:
    """Write the manifest."""
    content = {"settings": asdict(settings), "shards": [asdict(shard) for shard in shards]}
    atomic_write_text(out / IMPORT_MANIFEST, json.dumps(content, indent=1) + "\n")


def _load_manifest(out: Path, settings: ImportSettings) -> list[ImportShard]:
    path = out / IMPORT_MANIFEST
    if not path.exists():
        if any(True for _ in out.glob("*.tar")):
            raise ValueError(f"{out}: has shards that `vwm import` did not write. Choose another folder.")
        return []
    shards = read_manifest(path, settings, "vwm import", ImportShard)
    for shard in shards:  # what could not be read is tried again
        shard.done &= not shard.skipped and is_shard_complete(out / shard.name)
    return shards
