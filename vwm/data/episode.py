"""The episode: the data format shared by recording, shards and readers.

Alignment: ``actions[t]`` leads from ``frames[t]`` to ``frames[t + 1]``, and ``rewards[t]`` is the reward of that
action. The last action of an episode leads to a frame that is not stored.

Continuous actions are normalized to [-1, 1]: -1 is the lowest value of the environment's action space and 1 the
highest. The metadata hold these bounds (``action_low``, ``action_high``), the names of the dimensions
(``action_names``) and the neutral action (``action_rest``, in [-1, 1]; a brake that is not pressed is at -1).

Composite actions (choices, keys that are held together, axes, a pointer) are one row of columns per frame. The metadata
state their parts in the order of the columns (``action_parts``, see ``vwm.core.action_parts``), and the names of the
parts that this episode does not know, whose columns hold their rest values (``unknown_action_parts``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart, read_action_parts
from vwm.core.spaces import ActionSpace


@dataclass(frozen=True)
class Episode:
    """An uninterrupted video, with actions, rewards and environment state where they are known.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        actions: int64 [T] (discrete) or float32 [T, A] (continuous in [-1, 1], or composite); ``actions[t]`` leads
            from ``frames[t]`` to ``frames[t + 1]``. None if unknown.
        rewards: float32 [T]; ``rewards[t]`` is the reward of ``actions[t]``. None if unknown.
        state: float32 [T, S], state of the environment at ``frames[t]``. None if unknown.
        terminated: the environment ended after the last frame (a death, a goal).
        truncated: the recording ended after the last frame, but the environment did not.
        meta: JSON-serializable metadata: ``fps`` (frames per second), ``source``, ``action_names``, ...
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
                f"frames must be uint8 [T, H, W, 3] with no empty dimension, got {frames.dtype} {list(frames.shape)}"
            )
        for name in ("actions", "rewards", "state"):
            value = getattr(self, name)
            if value is not None and len(value) != len(frames):
                raise ValueError(
                    f"{name} must have one entry per frame: got {len(value)} for {len(frames)} frames. "
                    f"{name}[t] belongs to frames[t]; an unknown action of the last frame may be 0."
                )
        if self.actions is not None and self.actions.ndim == 2 and self.actions.dtype != np.float32:
            raise ValueError(f"continuous and composite actions must be float32 [T, A], got {self.actions.dtype}")
        if self.actions is not None and self.action_parts:
            ActionSpace.composite(*self.action_parts).check_rows(torch.from_numpy(self.actions))
        elif self.actions is not None and self.actions.ndim == 2 and not (np.abs(self.actions) <= 1).all():
            raise ValueError(
                f"continuous actions must lie in [-1, 1], got {self.actions.min():g} to {self.actions.max():g}: "
                f"scale each dimension so that its lowest possible value is -1 and its highest 1"
            )
        if self.actions is not None and self.actions.ndim == 1 and self.actions.dtype.kind not in "iu":
            raise ValueError(f"discrete actions must be integers [T], got {self.actions.dtype}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def action_parts(self) -> tuple[ActionPart, ...]:
        """The parts of composite actions, as the metadata state them; empty for other actions."""
        return read_action_parts(self.meta["action_parts"]) if self.meta.get("action_parts") else ()
