"""Image sequences: a folder of frames an episode, or one animated GIF, WebP or PNG file.

Actions may lie beside either, in the files that ``vwm ingest`` reads for videos: ``walk.actions.csv`` beside the folder
``walk`` or the file ``walk.gif``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from vwm.data.action_files import read_action_file
from vwm.data.importers.pictures import decode_picture, to_pixels
from vwm.data.importers.source import EpisodeSource, SourceEpisode

PICTURE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm")
ANIMATION_EXTENSIONS = ("gif", "webp", "png", "apng")
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
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path.parent).parts)]
        self.paths: dict[str, Path] = {}
        animated: dict[tuple[Path, str], bool] = {}
        for file in visible:
            extension = file.suffix[1:].lower()
            if extension in ANIMATION_EXTENSIONS and (file.parent, extension) not in animated:
                animated[file.parent, extension] = extension not in PICTURE_EXTENSIONS or _is_animated(file)
            if animated.get((file.parent, extension)):
                self.paths[self._name(path, file)] = file
            elif extension in PICTURE_EXTENSIONS and path.is_dir():
                self.paths[self._name(path, file.parent)] = file.parent
        if not self.paths:
            raise ValueError(f"{path}: has no folder of pictures and no animated GIF, WebP or PNG file")

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return sorted(self.paths, key=_natural_order)

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        path = self.paths[name]
        if path.is_dir():
            files = _pictures_of(path)
            repeats, fps = [1] * len(files), None
            iterate = functools.partial(_iterate_pictures, files)
        else:
            repeats, fps = _read_timing(path)
            iterate = functools.partial(_iterate_animation, path, repeats)
        length = sum(repeats)
        beside = path.parent / f"{path.name if path.is_dir() else path.stem}.frames"
        actions = read_action_file(beside)
        if actions is not None and len(actions.values) != length:
            raise ValueError(f"has {len(actions.values)} actions for {length} frames{_stored(repeats)}")
        return SourceEpisode(
            length=length,
            iterate_frames=lambda camera: iterate(),
            actions=None if actions is None else actions.values,
            fps=fps,
            meta={} if actions is None else actions.meta,
        )

    @staticmethod
    def _name(root: Path, path: Path) -> str:
        return root.name if path == root else path.relative_to(root).as_posix()


def _pictures_of(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order.

    Raises:
        ValueError: they are of several kinds, as where each is stored twice.
    """
    kinds: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        extension = file.suffix[1:].lower().replace("jpeg", "jpg")
        if extension in PICTURE_EXTENSIONS and file.is_file() and not file.name.startswith("."):
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
    shortest one, and longer ones are several.
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
    repeats = [min(round(time / min(seconds)), MAX_REPEATS) for time in seconds]
    return repeats, round(len(repeats) / sum(seconds), 3) if set(repeats) == {1} else round(1 / min(seconds), 3)


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
