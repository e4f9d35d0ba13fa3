"""`vwm ingest`: convert a folder of videos, with or without actions, to shards, and add what models make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from vwm.core.command_output import format_count, format_training, print_output
from vwm.core.limits import MAX_FPS
from vwm.data.curation.filters import CurationSettings, make_curation
from vwm.data.curation_report import count_removed
from vwm.data.frame_size import choose_frame_size
from vwm.data.ingest import IngestOutcome, choose_engine, ingest_folder
from vwm.data.ingest_manifest import IngestSettings, IngestShard, check_video_folder
from vwm.data.shard_index import list_shards
from vwm.tokenizers.corpus_models import CorpusModels, make_clip_models


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
    models: CorpusModels = CorpusModels(),
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
        shots: "detect" (by PySceneDetect), or a folder with the weights of TransNet V2, which also finds gradual
            transitions: no clip spans a cut. By default videos are cut at clip_length only.
        measure: measures of clips to store with them, of black, frozen, motion and text.
        remove: filters that remove clips, with their default limits or others: black,frozen=0.8,duplicates.
        videos_per_shard: videos per shard.
        engine: local processes, or Ray Data. Both give the same bytes.
        ray_address: of a Ray cluster whose machines see the same folders; by default Ray is started on this machine.
        workers: number of processes that decode; 0 decodes in this one. The result does not depend on it.
        timeout: seconds without a new frame after which a video is abandoned.
        models: add to the clips.

    Raises:
        ValueError: a setting is invalid, ``out`` was made with other settings, or no video could be read.
    """
    curation = make_curation(shots, measure, remove)
    settings = _make_settings(folder, size, height, width, fps, clip_length, videos_per_shard, curation)
    chosen = choose_engine(engine, ray_address, workers)
    clip_models = make_clip_models(models, settings.height, settings.width)
    fingerprints = {model.adds: model.fingerprint for model in clip_models}
    if curation is not None and curation.shots not in (None, "detect"):
        from vwm.data.curation.transnet import check_weights

        fingerprints["shots"] = check_weights(Path(str(curation.shots)))
    settings = replace(settings, models=fingerprints)
    outcome = ingest_folder(settings, out, chosen, clip_models, timeout)
    if models.tokenizer is not None:
        from vwm.tokenizers.shard_encoding import write_latents_metadata  # diffusers takes seconds to import

        write_latents_metadata(out, folder, settings.models["latents"])
    _print_outcome(outcome)
    shards = outcome.shards
    if not any(s.episodes or s.removed for s in shards):
        count = len(outcome.files)
        raise ValueError(f"{folder}: none of its {count} videos could be read; the reasons are listed above")
    if outcome.report is not None:
        _print_removed(shards, outcome.report)
    if not any(s.episodes for s in shards):
        count = len(outcome.files)
        raise ValueError(f"{folder}: the filters removed all clips of its {count} videos; {outcome.report} shows them")
    _print_summary(out, outcome, models.tokenizer)


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
    check_video_folder(folder)
    height, width = choose_frame_size(size, height, width)
    for name, value in (("fps", fps), ("videos_per_shard", videos_per_shard)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if fps is not None and fps > MAX_FPS:  # more frames a second would only repeat some
        raise ValueError(f"fps must be at most {MAX_FPS}, got {fps:g}")
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


def _print_outcome(outcome: IngestOutcome) -> None:
    shards = outcome.shards
    _print_table("truncated", {path: reason for s in shards for path, reason in s.truncated.items()})
    _print_table("skipped", {path: reason for s in shards for path, reason in s.skipped.items()})
    _print_table("folders that cannot be read", outcome.unreadable)
    kept = [path for s in shards for path in s.files if path not in outcome.files]
    _print_table("no longer there, kept in the shards", dict.fromkeys(kept, ""))


def _print_summary(out: Path, outcome: IngestOutcome, tokenizer: Path | None) -> None:
    new = outcome.new
    contents = "all videos are ingested already. Nothing to do."
    if new:
        frames, episodes = sum(s.frames for s in new), sum(s.episodes for s in new)
        contents = (
            f"{frames} frames in {format_count(episodes, 'episode')}, {format_count(len(new), 'shard')}, "
            f"{frames / outcome.seconds:.0f} frames/s"
        )
    if tokenizer is None:
        print_output(out, contents, format_training(out, out.name))
    else:
        from vwm.tokenizers.shard_encoding import format_training_on_latents

        print_output(out, contents, format_training_on_latents(out, tokenizer, list_shards(out)[0]))


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
