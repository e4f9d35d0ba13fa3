"""The report of a curated ingest: how many clips each filter removed, as JSON, and a page with pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vwm.core.atomic_files import atomic_write_text
from vwm.data.clip_tables import ClipRecord, read_clip_table
from vwm.data.curation.filters import FILTERS
from vwm.data.curation_page import RemovedClip, format_page
from vwm.data.ingest_manifest import IngestSettings, IngestShard

REPORT = "report"
"""Folder of the report, in the folder of the shards."""


def count_removed(shards: list[IngestShard]) -> dict[str, int]:
    """Return how many clips each filter removed, in the order of the filters."""
    counts = {name: sum(shard.removed.get(name, 0) for shard in shards) for name in FILTERS}
    return {name: count for name, count in counts.items() if count}


def write_curation_report(
    out: Path, settings: IngestSettings, shards: list[IngestShard], files: dict[str, list[int]]
) -> Path:
    """Write ``report/report.json`` and ``report/index.html``; return the path of the page.

    Both are functions of the manifest, the clip tables and the videos, from which the pictures are decoded again.
    """
    removed, sources = _collect_outcomes(out, shards)
    summary = _summarize(settings, shards, removed, [sources.get(path, "missing") for path in files])
    page = out / REPORT / "index.html"
    atomic_write_text(page.with_name("report.json"), json.dumps(summary, indent=1) + "\n")
    atomic_write_text(page, format_page(settings.folder, summary, removed))
    return page


def _collect_outcomes(out: Path, shards: list[IngestShard]) -> tuple[dict[str, list[RemovedClip]], dict[str, str]]:
    """Return the clips that each filter removed, and of each video ``kept``, ``removed`` or ``skipped``."""
    removed: dict[str, list[RemovedClip]] = {name: [] for name in FILTERS}
    sources = {path: "skipped" for shard in shards for path in shard.skipped}
    repeated = {key for shard in shards for key in (shard.duplicates or {}).values()}
    originals: dict[str, ClipRecord] = {}
    for shard in shards:
        for record in read_clip_table(out, shard.name):
            if record.key in repeated:
                originals[record.key] = record
    for shard in shards:
        for record in read_clip_table(out, shard.name):
            original = (shard.duplicates or {}).get(record.key)
            if record.removed_by or original is not None:
                pair = (record, None if original is None else originals.get(original))
                removed[record.removed_by or "duplicates"].append(pair)
                sources.setdefault(record.source, "removed")
            else:
                sources[record.source] = "kept"
    return removed, sources


def _summarize(
    settings: IngestSettings, shards: list[IngestShard], removed: dict[str, list[RemovedClip]], outcomes: list[str]
) -> dict[str, Any]:
    assert settings.curation is not None
    clips = [record for pairs in removed.values() for record, _ in pairs]
    return {
        "settings": asdict(settings.curation),
        "files": {"found": len(outcomes)}
        | {name: outcomes.count(name) for name in ("kept", "removed", "skipped", "missing")},
        "truncated": sum(len(shard.truncated) for shard in shards),
        "clips": {"kept": sum(shard.episodes for shard in shards), "removed": len(clips)},
        "frames": {"kept": sum(shard.frames for shard in shards), "removed": sum(r.frames for r in clips)},
        "removed": {
            name: {
                "clips": len(pairs),
                "seconds": round(sum(record.frames / record.fps for record, _ in pairs if record.fps), 1),
            }
            for name, pairs in removed.items()
            if pairs
        },
    }
