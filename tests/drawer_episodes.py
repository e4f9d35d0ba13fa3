"""The episodes of every recording in these tests, so that content is compared, not shapes.

Frame t of episode e is grey 20 e + 10 t + 40, a second camera its inverse; the state is (e, t), the action
(30 t, -1.5 e) or the choice (3 t + e) mod 15, and the last action is rewarded by 1. The second episode ends by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shard_contents import Arrays, read_shards

LENGTHS = (6, 4)
TASKS = ("pick the cube", "open the drawer")


def level(number: int) -> NDArray[np.int64]:
    return np.asarray(20 * number + 10 * np.arange(LENGTHS[number]) + 40)


def grey_frames(number: int, size: int = 16) -> NDArray[np.uint8]:
    grey = level(number).astype(np.uint8)[:, None, None, None]
    return np.broadcast_to(grey, (LENGTHS[number], size, size, 3)).copy()


def choices(number: int) -> NDArray[np.int64]:
    return (3 * np.arange(LENGTHS[number]) + number) % 15


def axes(number: int) -> NDArray[np.float32]:
    time = np.arange(LENGTHS[number])
    return np.stack([30 * time, np.full(len(time), -1.5 * number)], 1).astype(np.float32)


def states(number: int) -> NDArray[np.float32]:
    return np.stack([np.full(LENGTHS[number], number), np.arange(LENGTHS[number])], 1).astype(np.float32)


def rewards(number: int) -> NDArray[np.float32]:
    return (np.arange(LENGTHS[number]) == LENGTHS[number] - 1).astype(np.float32)


def raw_actions(arrays: Arrays, meta: dict[str, Any]) -> NDArray[Any]:
    """Return continuous actions in their units."""
    low, high = np.array(meta["action_low"]), np.array(meta["action_high"])
    return np.asarray(low + (arrays["actions"] + 1) / 2 * (high - low))


def check_frames(
    found: NDArray[np.uint8], number: int, tolerance: float = 0, second: NDArray[np.uint8] | None = None
) -> None:
    np.testing.assert_allclose(found.mean((1, 2, 3)), level(number), atol=tolerance)
    if second is not None:
        np.testing.assert_allclose(second.mean((1, 2, 3)), 255 - level(number), atol=tolerance)


def check_drawer(folder: Path, tolerance: float, two_cameras: bool = True) -> list[dict[str, Any]]:
    """Compare shards of both episodes, 16 pixels a camera, with what they must hold; return their metadata."""
    episodes = read_shards(folder)
    assert len(episodes) == 2
    for number, (arrays, meta) in enumerate(episodes):
        frames = arrays["frames"]
        assert frames.shape[1:] == (16, 32 if two_cameras else 16, 3)
        check_frames(frames[:, :, :14], number, tolerance, frames[:, :, 18:] if two_cameras else None)
        np.testing.assert_allclose(raw_actions(arrays, meta), axes(number), atol=1e-4)
        np.testing.assert_array_equal(arrays["state"], states(number))
        np.testing.assert_array_equal(arrays["rewards"], rewards(number))
        assert [meta["terminated"], meta["truncated"]] == [number == 1, number == 0]
    return [meta for _, meta in episodes]
