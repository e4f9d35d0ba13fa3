"""The work of an ingest, shard by shard. Equal videos and settings give equal bytes, whichever process does it."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from vwm.data.clip_models import ClipModel, extend_sample, load_clip_models
from vwm.data.clip_tables import ClipRecord, read_clip_table, write_clip_table
from vwm.data.curation.duplicates import find_duplicates, hash_clip
from vwm.data.curation.filters import find_removing_filter
from vwm.data.ingest_manifest import STAGING, IngestSettings, IngestShard
from vwm.data.shard_index import is_shard_complete, load_shard_index, shard_index_path
from vwm.data.shards import ShardWriter
from vwm.data.video_episodes import VideoClip, iterate_video_clips


def ingest_shard(settings: IngestSettings, out: Path, timeout: float, shard: IngestShard) -> IngestShard:
    """Decode the videos of a shard, remove what the filters remove, and write it. Nothing is written of no clip.

    Where there is a second pass, the shard is written into the staging folder.
    """
    result = IngestShard(shard.name, shard.files)
    folder = out / STAGING if settings.has_second_pass else out
    records: list[ClipRecord] = []
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for video_number, path in enumerate(shard.files):
            for clip_number, clip in enumerate(iterate_video_clips(settings, path, result, timeout)):
                key = f"{shard.name[6:12]}-{video_number:04d}-{clip_number:05d}"
                record = _describe_clip(settings, key, clip)
                records.append(record)
                if record.removed_by:
                    result.removed[record.removed_by] = result.removed.get(record.removed_by, 0) + 1
                    continue
                writer = writer or stack.enter_context(ShardWriter(folder / shard.name))
                writer.write(key, clip.episode)
                result.frames += len(clip.episode)
                result.episodes += 1
        if settings.curation is not None:  # before the shard, which says that it is complete
            write_clip_table(out, shard.name, records)
    result.decoded, result.done = settings.has_second_pass, not settings.has_second_pass
    if not result.episodes:
        _remove_shard(folder / shard.name)
    return result


def _describe_clip(settings: IngestSettings, key: str, clip: VideoClip) -> ClipRecord:
    curation, meta = settings.curation, clip.episode.meta
    removed_by = "" if curation is None else find_removing_filter(clip.scores, curation.limits) or ""
    is_compared = settings.compares_clips and not removed_by
    return ClipRecord(
        key=key,
        source=meta["source"],
        first_frame=meta["first_source_frame"],
        middle_frame=clip.middle_frame,
        frames=len(clip.episode),
        fps=float(meta.get("fps", 0)),
        scores=clip.scores,
        hash=hash_clip(clip.episode.frames).hex() if is_compared else "",
        removed_by=removed_by,
    )


def settle_duplicates(out: Path, settings: IngestSettings, shards: list[IngestShard]) -> None:
    """Compare the clips of newly decoded shards with each other and with those of older shards.

    Of clips that repeat each other the one in the older shard stays, and then the first one. The outcome is a function
    of the videos alone, whatever was killed in between. Afterwards ``duplicates`` of every decoded shard is set.
    """
    new = [shard for shard in shards if shard.decoded and shard.duplicates is None]
    if not new:
        return
    if settings.curation is None or not settings.compares_clips:
        for shard in new:
            shard.duplicates = {}
        return
    records: list[ClipRecord] = []
    owners: list[IngestShard] = []
    settled: list[int] = []
    for shard in shards:
        for record in read_clip_table(out, shard.name):
            if record.hash and record.key not in (shard.duplicates or {}):
                if shard.duplicates is not None:
                    settled.append(len(records))
                records.append(record)
                owners.append(shard)
    limit = int(settings.curation.limits["duplicates"])
    found = find_duplicates([bytes.fromhex(r.hash) for r in records], limit, settled)
    for shard in new:
        shard.duplicates = {}
    for index, original in found.items():
        shard = owners[index]
        assert shard.duplicates is not None
        shard.duplicates[records[index].key] = records[original].key
        shard.removed["duplicates"] = len(shard.duplicates)
        shard.frames -= records[index].frames
        shard.episodes -= 1


def publish_shard(out: Path, models: Sequence[ClipModel], shard: IngestShard) -> IngestShard:
    """Move a shard out of the staging folder, without the clips that repeat others, and with what models add.

    Running it again after it was interrupted at any moment gives the same bytes.
    """
    assert shard.duplicates is not None
    staged, target = out / STAGING / shard.name, out / shard.name
    if not shard.episodes:
        _remove_shard(target)
    elif is_shard_complete(staged):  # else it was published before the manifest was saved
        if shard.duplicates or models:
            _copy_shard(staged, target, shard.duplicates, models)
        else:
            staged.replace(target)
            Path(shard_index_path(staged)).replace(shard_index_path(target))
    _remove_shard(staged)
    return replace(shard, done=True, decoded=False)


def _copy_shard(staged: Path, target: Path, left_out: Container[str], models: Sequence[ClipModel]) -> None:
    with load_clip_models(models) as functions, ShardWriter(target) as writer:
        for entry in load_shard_index(str(staged)).episodes:
            if entry.key not in left_out:
                writer.write_sample(extend_sample(str(staged), entry, functions))


def _remove_shard(shard: Path) -> None:
    for path in (shard, Path(shard_index_path(shard))):
        path.unlink(missing_ok=True)
