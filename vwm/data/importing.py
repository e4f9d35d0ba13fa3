"""`vwm import`: convert a data set of another project to shards.

Episodes are assigned to shards before any is read. An interrupted import continues with the missing shards, a finished
one adds shards of new episodes, and the result does not depend on the number of worker processes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vwm.core.atomic_files import remove_folder_leftovers
from vwm.core.command_output import format_count, format_training, print_output
from vwm.core.folder_lock import lock_folder
from vwm.core.limits import MAX_FPS
from vwm.data.episode import Episode
from vwm.data.frame_size import choose_frame_size
from vwm.data.import_manifest import ImportSettings, ImportShard, plan_shards, save_import_manifest
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.importers.source_values import choose_cameras, convert_values, describe_episode, resize_views
from vwm.data.shard_manifest import map_shards
from vwm.data.shards import ShardWriter
from vwm.data.workers import run_jobs

ImportKind = Literal[
    "lerobot",
    "minari",
    "hdf5",
    "npz",
    "images",
    "diamond",
    "csgo",
    "jasmine",
    "lance",
    "webdataset",
    "rocket-science",
    "rlds",
]

_SOURCES = {
    "lerobot": "vwm.data.importers.lerobot:LeRobotSource",
    "minari": "vwm.data.importers.minari:open_minari",
    "hdf5": "vwm.data.importers.hdf5:Hdf5Source",
    "npz": "vwm.data.importers.npz:NpzSource",
    "images": "vwm.data.importers.images:ImagesSource",
    "diamond": "vwm.data.importers.diamond:DiamondSource",
    "csgo": "vwm.data.importers.csgo:CsgoSource",
    "webdataset": "vwm.data.importers.webdataset:WebDatasetSource",
    "jasmine": "vwm.data.importers.jasmine:JasmineSource",
    "lance": "vwm.data.importers.lance:LanceSource",
    "rlds": "vwm.data.importers.rlds:RldsSource",
    "rocket-science": "vwm.data.importers.rocket_science:RocketScienceSource",
}


def import_dataset(
    kind: ImportKind,
    source: Path,
    out: Path,
    cameras: list[str] | None = None,
    size: int | None = None,
    height: int | None = None,
    width: int | None = None,
    clip_length: int = 1_000,
    fps: float | None = None,
    episodes_per_shard: int = 8,
    workers: int = 2,
) -> None:
    """Convert a data set of another project to shards, with its actions, rewards, states and instructions.

    Run it again to continue after an interruption, or to add new episodes. Continuous actions are scaled to [-1, 1] by
    the bounds that the data set states; the metadata of every episode hold them. Episodes that cannot be read are left
    out and listed.

    Args:
        kind: format of the data set: lerobot (versions 2.0 to 3.0), minari, hdf5 (a file of robomimic's or D4RL's
            layout), npz (a file or a folder of files of frames, actions, rewards, ends), images (folders of frames,
            animated GIF, WebP and PNG files), diamond (its .pt files), csgo (Counter-Strike's .hdf5 files), jasmine
            (its array_record files), lance (tables of stable-worldmodel), webdataset (tars of `vwm convert
            webdataset`), rocket-science (a split of kyutai's), rlds (Open X-Embodiment, as TensorFlow Datasets stores
            it).
        source: folder or file of the data set.
        out: folder for the shards.
        cameras: cameras whose pictures are put side by side; may be left out where there is one.
        size: side of the square frames of a camera, in pixels: frames are resized to cover it, and cropped around the
            center.
        height: height of frames that are not square, with --width.
        width: width of frames that are not square, with --height.
        clip_length: maximum frames per episode; longer ones are cut into several.
        fps: frames per second, where the data set does not state them.
        episodes_per_shard: episodes of the data set per shard.
        workers: number of processes that read; 0 reads in this one. The result does not depend on it.

    Raises:
        ValueError: a setting is invalid, ``out`` was made with other settings, or no episode could be read.
    """
    settings = _make_settings(kind, source, cameras, size, height, width, clip_length, fps, episodes_per_shard)
    _open_once.cache_clear()  # the source may have changed
    opened = _open_once(kind, source.resolve())
    settings = ImportSettings(**vars(settings) | {"cameras": choose_cameras(opened, settings.cameras, str(source))})
    bounds = opened.action_bounds()
    with lock_folder(out, "import"):
        remove_folder_leftovers(out)
        shards = plan_shards(out, settings, opened.episode_names())
        new = [i for i, shard in enumerate(shards) if not shard.done]
        save = functools.partial(save_import_manifest, out, settings, shards)
        save()
        work = functools.partial(_import_shard, settings, out, bounds)
        run = functools.partial(run_jobs, workers=workers)
        pending = [shards[i] for i in new]
        try:
            map_shards(shards, pending, work, run, save, lambda shard: len(shard.sources), "episode", "import")
        finally:
            _open_once.cache_clear()
    skipped = {name: reason for shard in shards for name, reason in shard.skipped.items()}
    if skipped:
        print(f"skipped ({len(skipped)}):")
        for name, reason in skipped.items():
            print(f"  {name}: {reason}")
    if not any(shard.episodes for shard in shards):
        raise ValueError(f"{source}: none of its {len(skipped)} episodes could be read; the reasons are listed above")
    episodes, frames = sum(shards[i].episodes for i in new), sum(shards[i].frames for i in new)
    contents = f"{frames} frames in {format_count(episodes, 'episode')}, {format_count(len(new), 'shard')}"
    print_output(out, contents if new else "all episodes are imported already.", format_training(out, out.name))


def open_source(kind: ImportKind, source: Path) -> EpisodeSource:
    """Open a data set of another project.

    Raises:
        ValueError: the kind is unknown, or the path has no such data set.
        ImportError: the format's library is not installed.
    """
    if kind not in _SOURCES:
        raise ValueError(f"kind must be one of {', '.join(get_args(ImportKind))}, got {kind}")
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    module, name = _SOURCES[kind].split(":")
    opened: EpisodeSource = getattr(importlib.import_module(module), name)(source)
    return opened


@functools.lru_cache(maxsize=1)
def _open_once(kind: ImportKind, source: Path) -> EpisodeSource:
    """Open the data set of an import once in each process, whatever the number of shards."""
    return open_source(kind, source)


def _make_settings(
    kind: str,
    source: Path,
    cameras: list[str] | None,
    size: int | None,
    height: int | None,
    width: int | None,
    clip_length: int,
    fps: float | None,
    episodes_per_shard: int,
) -> ImportSettings:
    height, width = choose_frame_size(size, height, width)
    for name, number, least in (("clip_length", clip_length, 2), ("episodes_per_shard", episodes_per_shard, 1)):
        if number < least:
            raise ValueError(f"{name} must be {least} or more, got {number}")
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"fps must be above 0 and at most {MAX_FPS}, got {fps:g}")
    chosen = tuple(cameras or ())
    return ImportSettings(kind, str(source.resolve()), chosen, height, width, clip_length, fps, episodes_per_shard)


def _import_shard(settings: ImportSettings, out: Path, bounds: ActionBounds | None, shard: ImportShard) -> ImportShard:
    """Write a shard; nothing is written where none of its episodes can be read."""
    result = ImportShard(shard.name, shard.sources, done=True)
    opened = _open_once(settings.kind, Path(settings.source))
    opened.use(settings.cameras)
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | None = None
        for number, name in enumerate(shard.sources):
            if opened.is_gone(name):
                continue
            try:
                episodes = _read_episodes(settings, opened, name, bounds)
            except ImportError:
                raise
            except Exception as error:  # noqa: BLE001 (a library's: one episode must not end the whole import)
                reason = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
                result.skipped[name] = reason.removeprefix(f"{name}: ")
                continue
            for piece, episode in enumerate(episodes):
                writer = writer or stack.enter_context(ShardWriter(out / shard.name))
                writer.write(f"{shard.name[6:12]}-{number:04d}-{piece:05d}", episode)
                result.frames += len(episode)
                result.episodes += 1
    return result


def _read_episodes(
    settings: ImportSettings, opened: EpisodeSource, name: str, bounds: ActionBounds | None
) -> list[Episode]:
    """Read an episode of the source, in pieces of at most ``clip_length`` frames, two or more each."""
    found = opened.read(name)
    widths: list[int] = []
    frames = np.stack(list(_join_cameras(settings, found, widths)))
    if len(frames) != found.length:
        raise ValueError(f"has {len(frames)} frames, but {found.length} are stated")
    if len(frames) < 2:
        raise ValueError("has fewer than 2 frames")
    values = convert_values(found, bounds)
    views = dict(zip(settings.cameras, widths, strict=True))
    meta = describe_episode(opened, name, found, views, bounds, settings.fps)
    starts = [s for s in range(0, len(frames), settings.clip_length) if len(frames) - s >= 2]
    return [_cut(frames, values, found.terminated, meta, start, settings.clip_length) for start in starts]


def _cut(
    frames: NDArray[np.uint8], values: dict[str, Any], terminated: bool, meta: dict[str, Any], start: int, length: int
) -> Episode:
    piece = slice(start, start + length)
    actions, rewards, state = (values[name] for name in ("actions", "rewards", "state"))
    ends = terminated and start + length >= len(frames)
    return Episode(
        frames[piece],
        actions=None if actions is None else actions[piece],
        rewards=None if rewards is None else rewards[piece],
        state=None if state is None else state[piece],
        terminated=ends,
        truncated=not ends,
        meta=meta | {"first_source_frame": start},
    )


def _join_cameras(settings: ImportSettings, found: SourceEpisode, widths: list[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of all cameras side by side, each resized; sets ``widths`` to how wide each camera is."""
    views = [found.iterate_frames(camera) for camera in settings.cameras]
    first: tuple[int, ...] = ()
    for number, pictures in enumerate(itertools.zip_longest(*views)):
        if any(picture is None for picture in pictures):
            raise ValueError("its cameras have different numbers of frames")
        resized = resize_views(pictures, settings.height, settings.width)
        widths[:] = widths or [picture.shape[1] for picture in resized]
        frame = np.concatenate(resized, axis=1)
        first = first or frame.shape
        if frame.shape != first:
            now, before = (f"{width}x{height}" for height, width, _ in (frame.shape, first))
            raise ValueError(f"frame {number} is {now}, the first one {before}: give --size to resize them")
        yield frame
