"""Image sequences: a folder of frames an episode, or one animated GIF, WebP or PNG file.

Actions may lie beside either, in the files that ``vwm ingest`` reads for videos: ``walk.actions.csv`` beside the folder
``walk`` or the file ``walk.gif``; those of a folder may also lie in it: ``walk/actions.csv``. A last frame without an
action does not count.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from vwm.data.action_files import VideoActions, read_action_file, read_actions
from vwm.data.importers.pictures import decode_picture, to_pixels
from vwm.data.importers.source import EpisodeSource, SourceEpisode

PICTURE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm")
ANIMATION_EXTENSIONS = ("gif", "webp", "png", "apng")
CLOCK_SECONDS = 0.01
"""Unit in which GIF files count time."""
MAX_REPEATS = 1_000
"""Times that a frame of an animation is repeated at most: one that is shown for longer is a pause."""


class ImagesSource(EpisodeSource):
    """A folder, searched to any depth, or one animated file.

    Every folder that has pictures is an episode, its frames in the order of their names with numbers by value (2 before
    10); every animated file is another one. WebP and PNG files are either: all of a folder are taken to be what the
    first is, so that not every one need be opened.

    Args:
        path: of the folder or file.

    Raises:
        ValueError: there are no pictures.
    """

    cameras = ("frames",)

    def __init__(self, path: Path) -> None:
        self.paths: dict[str, Path] = {}
        for folder, names in _visible_files(path):
            animated: dict[str, bool] = {}
            for name in sorted(names):
                file = folder / name
                extension = file.suffix[1:].lower()
                if extension in ANIMATION_EXTENSIONS and extension not in animated:
                    animated[extension] = extension not in PICTURE_EXTENSIONS or _is_animated(file)
                if animated.get(extension):
                    self.paths[self._name(path, file)] = file
                elif extension in PICTURE_EXTENSIONS and path.is_dir():
                    self.paths[self._name(path, folder)] = folder
        if not self.paths:
            raise ValueError(f"{path}: has no folder of pictures and no animated GIF, WebP or PNG file")

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return sorted(self.paths, key=_natural_order)

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        path = self.paths[name]
        return _read_folder(path) if path.is_dir() else _read_animation(path)

    @staticmethod
    def _name(root: Path, path: Path) -> str:
        return root.name if path == root else path.relative_to(root).as_posix()


def _visible_files(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the names of the files in them, or the one file, without asking for the kind of each file."""
    if not path.is_dir():
        yield path.parent, [path.name]
        return
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _read_folder(folder: Path) -> SourceEpisode:
    files, extensions = _pictures_of(folder), ("npy", "csv", "json")
    inside = [folder / f"actions.{extension}" for extension in extensions]
    beside = [folder.with_name(f"{folder.name}.actions.{extension}") for extension in extensions]
    given = [paths for paths in (inside, beside) if any(path.exists() for path in paths[:2])]
    if len(given) == 2:
        raise ValueError(f"has actions in the folder and beside it ({folder.name}.actions): keep those of one place")
    actions = read_actions(given[0]) if given else None
    return _make_episode(actions, len(files), lambda: _iterate_pictures(files), None, "")


def _read_animation(file: Path) -> SourceEpisode:
    repeats, fps = _read_timing(file)
    actions = read_action_file(file.parent / f"{file.stem}.frames")
    if actions is not None and len(actions.values) in (len(repeats), len(repeats) - 1):
        repeats = [1] * len(repeats)  # an action for each stored frame, however long it is shown
    iterate = functools.partial(_iterate_animation, file, repeats)
    return _make_episode(actions, sum(repeats), iterate, fps, _stored(repeats))


def _make_episode(
    actions: VideoActions | None,
    length: int,
    iterate: Callable[[], Iterator[NDArray[np.uint8]]],
    fps: float | None,
    stored: str,
) -> SourceEpisode:
    """Return the episode of ``length`` frames; ``stored`` says in errors where another number is stored."""
    count = length if actions is None else len(actions.values)
    if count not in (length, length - 1):
        raise ValueError(f"has {count} actions for {length} frames{stored}")
    return SourceEpisode(
        length=count,
        iterate_frames=lambda camera: itertools.islice(iterate(), count),
        actions=None if actions is None else actions.values,
        fps=fps,
        meta={} if actions is None else actions.meta,
    )


def _pictures_of(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order.

    Raises:
        ValueError: they are of several kinds, as where each is stored twice.
    """
    kinds: dict[str, list[Path]] = {}
    _, names = next(_visible_files(folder))
    for file in (folder / name for name in sorted(names)):
        extension = file.suffix[1:].lower().replace("jpeg", "jpg")
        if extension in PICTURE_EXTENSIONS:
            kinds.setdefault(extension, []).append(file)
    for extension in set(kinds) & set(ANIMATION_EXTENSIONS):
        if _is_animated(kinds[extension][0]):
            del kinds[extension]
    if len(kinds) > 1:
        raise ValueError(f"has pictures of several kinds ({', '.join(sorted(kinds))}): keep those of one")
    files = next(iter(kinds.values()), [])
    return sorted(files, key=lambda file: _natural_order(file.name))


def _iterate_pictures(files: list[Path]) -> Iterator[NDArray[np.uint8]]:
    for file in files:
        yield decode_picture(file, file.name)


def _is_animated(file: Path) -> bool:
    """Whether a file has several frames; one that cannot be opened has not, and is named when it is decoded."""
    try:
        with Image.open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _read_timing(file: Path) -> tuple[list[int], float | None]:
    """Return how many frames each stored one stands for, and frames per second; None where the file does not state it.

    Writers of GIF files join equal frames to one that is shown for longer. Frames therefore last as long as the
    shortest ones, and longer ones are several. GIF counts hundredths of a second: at 30 frames a second, some are shown
    for 30 ms and some for 40.
    """
    try:
        with Image.open(file) as image:
            seconds = []
            for frame in ImageSequence.Iterator(image):
                frame.load()  # without it, some plugins state the time of the frame before
                seconds.append(float(frame.info.get("duration") or 0) / 1_000)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded as an animation ({error})") from error
    if min(seconds) <= 0:
        return [1] * len(seconds), None
    once = [time for time in seconds if time <= min(seconds) + CLOCK_SECONDS and time < 1.5 * min(seconds)]
    step = sum(once) / len(once)
    repeats = [min(max(1, round(time / step)), MAX_REPEATS) for time in seconds]
    return repeats, round(1 / step if MAX_REPEATS in repeats else sum(repeats) / sum(seconds), 3)


def _iterate_animation(file: Path, repeats: list[int]) -> Iterator[NDArray[np.uint8]]:
    with Image.open(file) as image:
        for frame, times in zip(ImageSequence.Iterator(image), repeats, strict=True):
            pixels = to_pixels(frame, file.name)
            for _ in range(times):
                yield pixels


def _stored(repeats: list[int]) -> str:
    """Say how many frames are stored where that is another number."""
    return "" if set(repeats) == {1} else f" ({len(repeats)} are stored, some of which are shown for longer)"


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a key of sorting by which numbers in names count by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
