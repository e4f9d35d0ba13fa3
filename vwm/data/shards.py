"""Write shards: plain WebDataset tars, which any WebDataset reader opens, and their indices.

A shard is written under a temporary name and renamed when it is complete (``vwm.core.atomic_files``), so that readers
never see an incomplete shard and an interrupted job writes it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import webdataset

from vwm.core.atomic_files import atomic_write
from vwm.data.episode import Episode
from vwm.data.shard_index import build_shard_index, write_shard_index
from vwm.data.video_encoding import encode_video

RAW_FRAME_MAX_PIXELS = 96 * 96
"""Frames of at most this many pixels are stored raw: reading 16 raw 64x64 frames takes a quarter of the time that
decoding takes, and only the bytes of the clip are read."""


def episode_to_sample(key: str, episode: Episode, raw: bool | None = None) -> dict[str, Any]:
    """Convert an episode to a WebDataset sample.

    Args:
        key: name of the sample in its shard.
        episode: the episode.
        raw: store the frames as ``frames.npy`` instead of H.264; None stores small frames raw.

    Raises:
        ValueError: the key contains a dot, at which WebDataset would cut it, or a slash.
    """
    if "." in key or "/" in key:
        raise ValueError(f"shard key {key!r} must not contain '.' or '/': WebDataset cuts keys at the first dot")
    _, height, width, _ = episode.frames.shape
    meta = {
        **episode.meta,
        "frames": len(episode),
        "height": height,
        "width": width,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
    }
    sample: dict[str, Any] = {"__key__": key, "json": meta}
    if raw if raw is not None else height * width <= RAW_FRAME_MAX_PIXELS:
        sample["frames.npy"] = np.ascontiguousarray(episode.frames)
    else:
        sample["mp4"] = encode_video(episode.frames, fps=float(meta.get("fps", 15)))
    for name in ("actions", "rewards", "state"):
        value = getattr(episode, name)
        if value is not None:
            sample[f"{name}.npy"] = value
    return sample


class ShardWriter:
    """Context manager that writes one shard. The shard appears when the block ends without an error.

    Args:
        path: the tar to write, ``.../shard-000000.tar``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(atomic_write(self.path))
        # With a fixed owner and time stamp, equal episodes give equal bytes, and equal recordings equal hashes.
        self._tar = webdataset.TarWriter(self._file, mtime=0, user="vwm", group="vwm")
        return self

    def write(self, key: str, episode: Episode, raw: bool | None = None) -> None:
        """Append an episode under ``key``."""
        self._tar.write(episode_to_sample(key, episode, raw))

    def write_sample(self, sample: Mapping[str, Any]) -> None:
        """Append a WebDataset sample (``__key__`` and its members)."""
        self._tar.write(dict(sample))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._tar.close()
            if kind is not None:
                self._stack.pop_all().__exit__(kind, value, trace)  # removes the temporary file
                return
            self._file.seek(0)
            index = build_shard_index(str(self.path), self._file)
        write_shard_index(index, self.path)
