"""The episode: what every recording, every shard and every reader agrees on.

The one alignment rule of the project stands here: ``actions[t]`` leads from ``frames[t]`` to
``frames[t + 1]``, and ``rewards[t]`` is what that action earned. The last action of an episode leads to a
frame that was not stored.

Continuous actions are stored as everything here takes them, in [-1, 1]: -1 is the lowest value of the game's own and
1 the highest. The json says what these are (``action_low``, ``action_high``), what the dimensions are called
(``action_names``) and where they stand when nobody touches them (``action_rest``, in [-1, 1]: a brake rests at -1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """One unbroken piece of video, with what was done and earned in it where that is known.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        actions: int64 [T] (discrete) or float32 [T, A] in [-1, 1] (continuous); ``actions[t]`` leads from
            ``frames[t]`` to ``frames[t + 1]``. None where nobody labelled them.
        rewards: float32 [T]; ``rewards[t]`` was earned by ``actions[t]``. None where unknown.
        state: float32 [T, S], what the environment says of itself at ``frames[t]``. None where unknown.
        terminated: the world ended after the last frame (a death, a goal).
        truncated: the recording ended there, the world did not.
        meta: JSON-able facts: ``fps`` (frames a second), ``source``, ``action_names``, ...
    """

    frames: NDArray[np.uint8]
    actions: NDArray[Any] | None = None
    rewards: NDArray[np.float32] | None = None
    state: NDArray[np.float32] | None = None
    terminated: bool = False
    truncated: bool = True
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(
                f"frames must be uint8 [T, H, W, 3] with no empty side, got {frames.dtype} {list(frames.shape)}"
            )
        for name in ("actions", "rewards", "state"):
            value = getattr(self, name)
            if value is not None and len(value) != len(frames):
                raise ValueError(
                    f"{name} must have one entry a frame: got {len(value)} for {len(frames)} frames. "
                    f"{name}[t] belongs to frames[t]; an action of the last frame that leads nowhere may be 0."
                )
        if self.actions is not None and self.actions.ndim == 2 and self.actions.dtype != np.float32:
            raise ValueError(f"continuous actions must be float32 [T, A], got {self.actions.dtype}")
        if self.actions is not None and self.actions.ndim == 2 and not (np.abs(self.actions) <= 1).all():
            raise ValueError(
                f"continuous actions must lie in [-1, 1], got {self.actions.min():g} to {self.actions.max():g}: scale "
                f"them, -1 to the lowest value that each can have and 1 to its highest"
            )
        if self.actions is not None and self.actions.ndim == 1 and self.actions.dtype.kind not in "iu":
            raise ValueError(f"discrete actions must be integers [T], got {self.actions.dtype}")

    def __len__(self) -> int:
        return len(self.frames)
