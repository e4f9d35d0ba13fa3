"""Plain WebDataset tars: a video for each camera, arrays in one ``npz``, and the metadata as JSON, for each episode."""

from __future__ import annotations

import io
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import webdataset

from vwm.core.atomic_files import atomic_write
from vwm.data.exporters.dataset_exporter import DatasetExporter, ExportShard
from vwm.data.exporters.stored_episode import StoredEpisode, read_stored_episode, shorten_camera_names
from vwm.data.video_encoding import FrameEncoder


class WebDatasetExporter(DatasetExporter):
    """Writes a tar for each shard.

    Sample ``KEY`` has these members:

    - ``KEY.mp4``; or ``KEY.NAME.mp4`` for each of several cameras.
    - ``KEY.npz``: ``actions``, ``rewards``, ``state`` where they are known, and ``timestamps`` in seconds: [T, ...]
      each. Continuous actions are in the units of the data set that they come from.
    - ``KEY.json``: the metadata.
    """

    def is_written(self, shard: ExportShard) -> bool:
        """See ``DatasetExporter``."""
        return self._path(shard).is_file()

    def write(self, shard: ExportShard) -> None:
        """See ``DatasetExporter``."""
        with (
            atomic_write(self._path(shard)) as file,
            webdataset.TarWriter(file, mtime=0, user="vwm", group="vwm") as tar,
        ):
            for entry in shard.episodes:
                tar.write(_make_sample(read_stored_episode(shard.path, entry, self.fps)))

    def _path(self, shard: ExportShard) -> Path:
        return self.out / f"{shard.number:06d}.tar"


def _make_sample(episode: StoredEpisode) -> dict[str, Any]:
    arrays = {name: getattr(episode, name) for name in ("actions", "rewards", "state")}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    arrays["timestamps"] = np.arange(episode.entry.frames) / episode.fps
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    meta = {**episode.meta, "fps": episode.fps, "frames": episode.entry.frames}
    return {"__key__": episode.entry.key, "json": meta, "npz": file.getvalue(), **_encode_cameras(episode)}


def _encode_cameras(episode: StoredEpisode) -> dict[str, bytes]:
    """Return the video of each camera by its extension."""
    short = shorten_camera_names(list(episode.cameras))
    extensions = {c: "mp4" if len(short) == 1 else f"{short[c].lower()}.mp4" for c in short}
    height = episode.entry.height
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {c: stack.enter_context(tempfile.TemporaryFile()) for c in short}
        with ExitStack() as encoding:
            encoders = {
                c: encoding.enter_context(FrameEncoder(files[c], height, part.stop - part.start, episode.fps))
                for c, part in episode.cameras.items()
            }
            for views in episode.iterate_views():
                for camera, pixels in views.items():
                    encoders[camera].write(pixels)
        videos = {}
        for camera, file in files.items():
            file.seek(0)
            videos[extensions[camera]] = file.read()
        return videos
