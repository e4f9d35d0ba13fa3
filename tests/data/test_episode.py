"""Episodes validate the shapes and types of their fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vwm.data.episode import Episode

FRAMES = np.zeros((5, 4, 6, 3), np.uint8)


def test_an_episode_is_as_long_as_its_frames() -> None:
    episode = Episode(FRAMES, np.arange(5), np.zeros(5, np.float32), np.zeros((5, 2), np.float32))
    assert len(episode) == 5
    assert episode.truncated and not episode.terminated and episode.meta == {}
    assert len(Episode(FRAMES, np.zeros((5, 3), np.float32))) == 5
    assert Episode(FRAMES).actions is None


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((5, 4, 6, 3), np.float32), r"float32 \[5, 4, 6, 3\]"),
        (np.zeros((5, 4, 6), np.uint8), r"uint8 \[5, 4, 6\]"),
        (np.zeros((5, 3, 4, 6), np.uint8), r"uint8 \[5, 3, 4, 6\]"),
        (np.zeros((0, 4, 6, 3), np.uint8), r"uint8 \[0, 4, 6, 3\]"),
        (np.zeros((5, 0, 6, 3), np.uint8), r"uint8 \[5, 0, 6, 3\]"),
    ],
)
def test_frames_are_checked(frames: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"frames must be uint8 \[T, H, W, 3\] .* got {said}"):
        Episode(frames)


@pytest.mark.parametrize("name", ["actions", "rewards", "state"])
def test_fields_have_one_entry_per_frame(name: str) -> None:
    for length in (4, 6):  # also the T - 1 actions between T frames, which leave the alignment open
        with pytest.raises(ValueError, match=f"{name} must have one entry per frame: got {length} for 5 frames"):
            Episode(FRAMES, **{name: np.zeros(length, np.int64)})


def test_types_of_actions_are_checked() -> None:
    with pytest.raises(ValueError, match=r"continuous and composite actions must be float32 \[T, A\], got float64"):
        Episode(FRAMES, np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"discrete actions must be integers \[T\], got float32"):
        Episode(FRAMES, np.zeros(5, np.float32))
    for value in (1.5, np.nan):
        with pytest.raises(ValueError, match=r"continuous actions must lie in \[-1, 1\]"):
            Episode(FRAMES, np.full((5, 2), value, np.float32))
