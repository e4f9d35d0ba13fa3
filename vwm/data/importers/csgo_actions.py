"""The actions of Counter-Strike as Pearce and Zhu (arXiv 2104.04258) store them, and as composite actions.

A row of the data set is 51 zeros and ones: keys and clicks that are held, and one of the movements of the mouse that
are told apart, to the side and then up or down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart
from vwm.core.spaces import ActionSpace

CSGO_KEYS = (
    "forward", "left", "back", "right", "jump", "crouch", "walk", "weapon 1", "weapon 2", "weapon 3", "reload", "fire",
    "aim",
)  # fmt: skip
MOUSE_X = (2, 4, 10, 20, 30, 60, 100, 200, 300, 500, 1000)
MOUSE_Y = (2, 4, 10, 20, 50, 100, 200)
"""Movements of the mouse to the right and down that are told apart; also to the left and up, and none."""
FULL_MOUSE_MOVEMENT = 1000.0
"""Movement of the mouse that 1 of the pointer stands for, along both sides."""
CSGO_COLUMNS = len(CSGO_KEYS) + 2 * len(MOUSE_X) + 1 + 2 * len(MOUSE_Y) + 1


def csgo_action_space() -> ActionSpace:
    """Return keys that can be held together, and the mouse as a pointer."""
    return ActionSpace.composite(
        ActionPart("keys", len(CSGO_KEYS), names=CSGO_KEYS), ActionPart("pointer", 2, name="mouse")
    )


def csgo_actions(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Convert rows of the data set [T, 51] to actions of ``csgo_action_space``, float32 [T, 15].

    Raises:
        ValueError: a row has other columns, values besides 0 and 1, or not one movement along each side.
    """
    if rows.ndim != 2 or rows.shape[1] != CSGO_COLUMNS:
        raise ValueError(f"its actions are {list(rows.shape)}, those of Counter-Strike [T, {CSGO_COLUMNS}]")
    first_y = CSGO_COLUMNS - 2 * len(MOUSE_Y) - 1
    keys, *sides = np.split(rows, [len(CSGO_KEYS), first_y], axis=1)
    wrong = ~((rows == 0) | (rows == 1)).all(1) | np.any([side.sum(1) != 1 for side in sides], axis=0)
    if wrong.any():
        raise ValueError(
            f"its action at frame {int(np.argmax(wrong))} is not of keys that are held and one movement of the mouse "
            "along each side"
        )
    levels = [np.array([*(-x for x in reversed(side)), 0, *side]) for side in (MOUSE_X, MOUSE_Y)]
    mouse = [known[side.argmax(1)] / FULL_MOUSE_MOVEMENT for known, side in zip(levels, sides, strict=True)]
    return np.column_stack((keys, *mouse)).astype(np.float32)
