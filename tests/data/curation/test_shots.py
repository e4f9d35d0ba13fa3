"""Shots: cuts are found at the right frame, and numbered although they are reported late."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from vwm.data.curation.shots import ContentShots, number_shots
from vwm.data.source_frame import SourceFrame


def scene(seed: int, count: int) -> list[NDArray[np.uint8]]:
    """Frames of a slow pan over a random picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 20, 3), dtype=np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    return [np.ascontiguousarray(picture[:, k : k + 96]) for k in range(count)]


def as_source(pictures: list[NDArray[np.uint8]], part: int = 0) -> list[SourceFrame]:
    return [SourceFrame(k / 24, k, picture, part, picture) for k, picture in enumerate(pictures)]


def shots_of(frames: list[SourceFrame]) -> list[int]:
    return [frame.shot for frame in number_shots(frames, ContentShots)]


def test_a_shot_begins_with_the_frame_after_the_cut() -> None:
    assert shots_of(as_source(scene(0, 20) + scene(1, 15) + scene(2, 12))) == [0] * 20 + [1] * 15 + [2] * 12


def test_a_pan_and_a_flash_are_no_cuts() -> None:
    frames = scene(0, 40)
    frames[20:22] = [np.full_like(frames[0], 255)] * 2
    assert set(shots_of(as_source(scene(0, 40)))) == {0}
    assert len(set(shots_of(as_source(frames)))) <= 2  # the flash begins no shot of its own


def test_every_part_of_a_video_begins_a_shot() -> None:
    assert shots_of(as_source(scene(0, 10)) + as_source(scene(0, 10), part=1)) == [0] * 10 + [1] * 10


def test_frames_before_an_error_are_yielded() -> None:
    def damaged() -> Iterator[SourceFrame]:
        yield from as_source(scene(0, 15) + scene(1, 9))
        raise ValueError("is damaged")

    found = []
    with pytest.raises(ValueError, match="is damaged"):
        for frame in number_shots(damaged(), ContentShots):
            found.append(frame.shot)
    assert found == [0] * 15 + [1] * 9
