"""Find the shots of a video while it is decoded, so that no clip spans a cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vwm.data.source_frame import SourceFrame

SHORTEST_SHOT = 8
"""Frames that a shot has at least; a flash of fewer belongs to the shot around it."""


class ShotChanges(NamedTuple):
    """What a detector has found, by numbers of frames, from 0.

    Attributes:
        begins: frames that begin a shot.
        between: frames in a gradual transition, which belong to no shot.
    """

    begins: list[int]
    between: Sequence[int] = ()


class ShotDetector(Protocol):
    """Finds cuts in a sequence of frames."""

    @property
    def delay(self) -> int:
        """Largest number of frames after the first frame of a shot at which its cut may still be reported."""

    def add(self, preview: NDArray[np.uint8]) -> ShotChanges:
        """Take the next preview, uint8 [h, w, 3]; return changes that are known now."""

    def finish(self) -> ShotChanges:
        """Return the changes that were not reported yet."""


class ContentShots:
    """PySceneDetect's adaptive detector: a frame begins a shot if it differs more than its neighbors do.

    Raises:
        ImportError: PySceneDetect is not installed.
    """

    def __init__(self) -> None:
        try:
            from scenedetect import AdaptiveDetector, FrameTimecode
        except ImportError as error:
            raise ImportError("shots need PySceneDetect: pip install 'vwm[curate]'") from error
        self._timecode = FrameTimecode
        self._detector = AdaptiveDetector(min_scene_len=SHORTEST_SHOT)
        self._count = 0

    @property
    def delay(self) -> int:
        return int(self._detector.event_buffer_length)

    def add(self, preview: NDArray[np.uint8]) -> ShotChanges:
        timecode = self._timecode(self._count, fps=30.0)  # cuts are counted in frames: the rate does not matter
        self._count += 1
        bgr = np.ascontiguousarray(preview[..., ::-1])
        return ShotChanges([cut.frame_num for cut in self._detector.process_frame(timecode, bgr)])

    def finish(self) -> ShotChanges:
        return ShotChanges([])


def make_shot_detector(shots: str) -> ShotDetector:
    """Make a detector: ``"detect"`` for PySceneDetect, or else TransNet V2 with the weights of this folder."""
    if shots == "detect":
        return ContentShots()
    from vwm.data.curation.transnet_shots import TransNetShots

    return TransNetShots(shots)


def number_shots(frames: Iterable[SourceFrame], make_detector: Callable[[], ShotDetector]) -> Iterator[SourceFrame]:
    """Yield frames with the number of their shot, each as soon as no cut before it can be reported any more.

    Frames between two shots are left out.

    Args:
        frames: with previews. Every part of a video begins a shot.
        make_detector: makes a detector for a part.

    Raises:
        Exception: what ``frames`` raises, after the frames before it have been yielded.
    """
    waiting: deque[tuple[int, SourceFrame]] = deque()
    cuts: set[int] = set()
    between: set[int] = set()
    detector, part, count, shot = make_detector(), 0, 0, 0

    def note(changes: ShotChanges) -> None:
        cuts.update(changes.begins)
        between.update(changes.between)

    def numbered(keep: int) -> Iterator[SourceFrame]:
        nonlocal shot
        while len(waiting) > keep:
            number, frame = waiting.popleft()
            shot += number in cuts
            cuts.discard(number)
            if number in between:
                between.discard(number)
            else:
                yield frame._replace(shot=shot)

    try:
        for frame in frames:
            if frame.part != part:
                note(detector.finish())
                yield from numbered(0)
                detector, part, count, shot = make_detector(), frame.part, 0, shot + 1
                cuts.clear()
                between.clear()
            assert frame.preview is not None
            waiting.append((count, frame))
            note(detector.add(frame.preview))
            count += 1
            yield from numbered(detector.delay + 1)
    except Exception:
        note(detector.finish())
        yield from numbered(0)
        raise
    note(detector.finish())
    yield from numbered(0)
