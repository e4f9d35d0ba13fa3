"""Recordings of Jasmine (p-doom): array_record files, one pickled dict a clip. They are read without unpickling."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vwm.core.json_files import read_json_object
from vwm.core.limits import MAX_FRAME_SIDE
from vwm.data.importers.array_records import count_array_records, read_array_record
from vwm.data.importers.named_arrays import make_episode
from vwm.data.importers.plain_pickle import read_plain_pickle
from vwm.data.importers.source import EpisodeSource, SourceEpisode

MAX_ASPECT = 3.0
"""Largest ratio of the sides among which the size of frames is looked for."""
SMOOTHER = 0.5
"""Frames of the wrong width are sheared: lines of the right one differ less than this share."""


class JasmineSource(EpisodeSource):
    """An array_record file, or a folder of them (``train``, ``val``, ``test``), of Jasmine's data generation.

    Records hold the bytes of the frames, but not their height and width. Those are square (CoinRun, Atari), or stated
    as ``image_height`` and ``image_width`` in ``metadata.json`` of the folder or the one above.

    Args:
        path: of the file or folder.

    Raises:
        ValueError: there is no such file.
        ImportError: array_record is not installed.
    """

    cameras = ("frames",)

    def __init__(self, path: Path) -> None:
        self.files = sorted(path.rglob("*.array_record")) if path.is_dir() else [path]
        if not self.files:
            raise ValueError(f"{path}: has no .array_record files")
        self.folder = path if path.is_dir() else path.parent
        self.stated = _read_stated_size(self.folder)

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``: a file and the number of a record. A file that cannot be read counts as one."""
        names = [file.relative_to(self.folder).as_posix() for file in self.files]
        counts = [max(1, _count_records(file)) for file in self.files]
        return [f"{name}:{i}" for name, count in zip(names, counts, strict=True) for i in range(count)]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        file, number = name.rsplit(":", 1)
        record = read_plain_pickle(read_array_record(self.folder / file, int(number)))
        video, length = record.get("raw_video"), record.get("sequence_length")
        if not isinstance(video, bytes) or not isinstance(length, int) or length < 1:
            raise ValueError("has no raw_video, or no sequence_length, so that it is no clip of Jasmine")
        pixels, rest = divmod(len(video), 3 * length)
        if rest or not pixels:
            raise ValueError(f"has {len(video)} bytes of raw_video, which are not {length} frames of 3 channels")
        frames = np.frombuffer(video, np.uint8)
        height, width = self.stated or _find_size(frames[: 3 * pixels], pixels)
        if height * width != pixels:
            raise ValueError(f"has frames of {pixels} pixels, but metadata.json states {width}x{height}")
        arrays = {"frames": frames.reshape(length, height, width, 3)}
        if record.get("actions") is not None:
            arrays["actions"] = np.asarray(record["actions"])
        return make_episode(arrays, self.cameras, slice(0, length))


def _count_records(file: Path) -> int:
    try:
        return count_array_records(file)
    except ValueError:
        return 0


def _read_stated_size(folder: Path) -> tuple[int, int] | None:
    """Return the height and width that ``metadata.json`` states; None if it does not."""
    for place in (folder, folder.parent):
        if not (place / "metadata.json").is_file():
            continue
        described = read_json_object(place / "metadata.json")
        size = described.get("image_height"), described.get("image_width")
        if size == (None, None):
            return None
        if not all(isinstance(side, int) and 0 < side <= MAX_FRAME_SIDE for side in size):
            raise ValueError(f"{place / 'metadata.json'}: image_height and image_width must be pixels, are {size}")
        return size  # type: ignore[return-value]
    return None


def _find_size(frame: NDArray[np.uint8], pixels: int) -> tuple[int, int]:
    """Return the height and width of square frames.

    Raises:
        ValueError: they are not square, or look like those of another width; the message has the remedy.
    """
    least = max(1, math.isqrt(int(pixels / MAX_ASPECT)))
    widths = [w for w in range(least, math.isqrt(int(pixels * MAX_ASPECT)) + 1) if pixels % w == 0]
    change = {w: _change_between_lines(frame, w) for w in widths}
    likely = min(widths, key=lambda w: change[w], default=pixels)
    side = math.isqrt(pixels)
    if side * side == pixels and change[likely] >= SMOOTHER * change[side]:
        return side, side
    raise ValueError(
        f"has frames of {pixels} pixels that do not look square, rather {likely}x{pixels // likely}: "
        "state image_height and image_width in metadata.json"
    )


def _change_between_lines(frame: NDArray[np.uint8], width: int) -> float:
    lines = frame.reshape(-1, width, 3).astype(np.int16)
    return float(np.abs(np.diff(lines, axis=0)).mean()) if len(lines) > 1 else math.inf
