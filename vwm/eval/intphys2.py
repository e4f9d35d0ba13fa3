"""IntPhys 2 (Bordes et al., 2025, arXiv 2506.09849): pairs of possible and impossible videos, as it is downloaded.

A folder of a split (``Main`` or ``Debug``) has ``metadata.csv`` and the videos. A row is a video: its scene
(``SceneIndex``), its ``type`` (``1_Possible``, ``1_Impossible``, ``2_Possible``, ``2_Impossible``), the principle that
it tests (``condition``), ``Difficulty``, ``Camera``, and its name: ``file_name``, a path in the folder (on the Hugging
Face Hub), or ``filename``, of a video in ``Videos`` (in the archive). The held-out split has no such table.

Legend: n pairs, t frames, h w pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vwm.eval.surprise import ViolationPairs

METADATA_FILE = "metadata.csv"
VIDEO_FOLDER = "Videos"
SCENE, TYPE, CONDITION = "SceneIndex", "type", "condition"
NAME_COLUMNS = ("file_name", "filename")
OUTCOMES = {"Possible": True, "Impossible": False}
PRINCIPLES = {"immutability_texture": "immutability", "continuity_swap": "continuity"}
"""Conditions that the benchmark counts under another one's name."""

Row = Mapping[str, str]


class VideoClips:
    """Clips of video files, decoded batch by batch: see ``Clips``.

    Args:
        files: the videos.
        frames: t, of each clip, from its first frame on.
        frame_step: distance in frames of the video from one frame of a clip to the next.
        image_size: (h, w) of the clips; the middle of a video is cut to this shape and resized.
    """

    def __init__(self, files: Sequence[Path], frames: int, frame_step: int, image_size: tuple[int, int]) -> None:
        self.files = list(files)
        self.frame_step = frame_step
        self.shape = (len(files), frames, *image_size, 3)

    def __len__(self) -> int:
        return len(self.files)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Yield uint8 [b, t, h, w, 3]."""
        for first in range(0, len(self), batch_size):
            yield torch.stack([self._read(file) for file in self.files[first : first + batch_size]])

    def _read(self, file: Path) -> Tensor:
        from vwm.data.video import decode_frames  # only here: decoders of video are not needed for other data

        _, frames, height, width, _ = self.shape
        indices = range(0, frames * self.frame_step, self.frame_step)
        return resize_middle(decode_frames(file, list(indices), str(file)), (height, width))


def resize_middle(frames: NDArray[np.uint8], image_size: tuple[int, int]) -> Tensor:
    """Cut the middle of frames to the shape of a size and resize it: uint8 [t, H, W, 3] -> uint8 [t, h, w, 3]."""
    (height, width), (tall, wide) = image_size, frames.shape[1:3]
    scale = max(height / tall, width / wide)
    rows, columns = min(tall, round(height / scale)), min(wide, round(width / scale))
    top, left = (tall - rows) // 2, (wide - columns) // 2
    middle = torch.from_numpy(frames[:, top : top + rows, left : left + columns]).permute(0, 3, 1, 2)
    if (rows, columns) != (height, width):
        middle = F.interpolate(middle, size=image_size, mode="bilinear", antialias=True)
    return middle.permute(0, 2, 3, 1).contiguous()


def is_intphys2_folder(data: str) -> bool:
    """Whether a folder is one of IntPhys 2's, with or without its table."""
    return (Path(data) / METADATA_FILE).is_file() or (Path(data) / VIDEO_FOLDER).is_dir()


def read_intphys2_pairs(
    folder: Path, image_size: tuple[int, int], frame_step: int = 10, by: str = CONDITION, limit: int | None = None
) -> ViolationPairs:
    """Read the pairs of a split of IntPhys 2.

    Args:
        folder: of the split.
        image_size: (h, w) of the clips.
        frame_step: distance in frames between those of a clip; the videos have 60 a second, and the published
            evaluation of V-JEPA takes every tenth.
        by: column whose values the results are divided by: ``condition`` (the four principles), ``Difficulty``,
            ``Camera``.
        limit: read at most this many pairs.

    Raises:
        ValueError: the table or a video is missing, a column is missing, or a video has no partner.
    """
    from vwm.data.video import probe_video

    table = folder / METADATA_FILE
    if not table.is_file():
        raise ValueError(
            f"{folder}: there is no {METADATA_FILE}; the held-out split of IntPhys 2 has none to measure on"
        )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    name = _check_columns(table, rows, by)
    pairs = _pair_rows(table, rows)[:limit]
    scenes: dict[str, int] = {}
    groups = [scenes.setdefault(possible[SCENE], len(scenes)) for possible, _ in pairs]
    files = [[_find_video(folder, row[name], table) for row in kind] for kind in zip(*pairs, strict=True)]
    counts = {probe_video(file, str(file))["frames"] for kind in files for file in kind}
    frames = (min(counts) - 1) // frame_step + 1
    clips = [VideoClips(kind, frames, frame_step, image_size) for kind in files]
    return ViolationPairs(
        possible=clips[0],
        impossible=clips[1],
        violation_frame=None,
        properties=tuple(PRINCIPLES.get(possible[by], possible[by]) for possible, _ in pairs),
        trial_groups=torch.tensor(groups),
    )


def _check_columns(table: Path, rows: Sequence[Row], by: str) -> str:
    """Return the column that has the names of the videos."""
    found = list(rows[0]) if rows else []
    missing = [column for column in (SCENE, TYPE, by) if column not in found]
    name = next((column for column in NAME_COLUMNS if column in found), None)
    if missing or name is None:
        missing += [" or ".join(NAME_COLUMNS)] if name is None else []
        raise ValueError(f"{table}: has no column {', '.join(missing)}, only {', '.join(found) or 'an empty table'}")
    return name


def _pair_rows(table: Path, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return (possible, impossible) rows: of each scene and number, in the order of the table."""
    found: dict[tuple[str, str], dict[bool, list[Row]]] = {}
    for row in rows:
        number, _, outcome = row[TYPE].partition("_")
        if outcome not in OUTCOMES:
            raise ValueError(
                f"{table}: type {row[TYPE]!r} is none of 1_Possible, 1_Impossible, 2_Possible, 2_Impossible"
            )
        found.setdefault((row[SCENE], number), {True: [], False: []})[OUTCOMES[outcome]].append(row)
    for (scene, number), pair in found.items():
        if len(pair[True]) != len(pair[False]):
            raise ValueError(
                f"{table}: scene {scene} has {len(pair[True])} videos {number}_Possible and {len(pair[False])} "
                f"{number}_Impossible"
            )
    return [both for pair in found.values() for both in zip(pair[True], pair[False], strict=True)]


def _find_video(folder: Path, name: str, table: Path) -> Path:
    """Return the file of a video, inside of the folder."""
    root = folder.resolve()
    for candidate in (folder / name, folder / VIDEO_FOLDER / name, folder / VIDEO_FOLDER / f"{name}.mp4"):
        file = candidate.resolve()
        if file.is_file() and file.is_relative_to(root):
            return file
    raise ValueError(f"{table}: there is no video {name} in {folder} or its {VIDEO_FOLDER}")
