"""Minecraft's actions as Oasis takes them: keys that can be held together, and the movement of the camera."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.core.action_parts import ActionPart
from vwm.core.spaces import ActionSpace

CAMERA_DOWN, CAMERA_RIGHT = "cameraX", "cameraY"
"""The recordings of Minecraft state pitch before yaw; 1 stands for 20 degrees in a frame."""

PUBLISHED_ACTIONS = (
    "inventory",
    "ESC",
    *(f"hotbar.{slot}" for slot in range(1, 10)),
    "forward",
    "back",
    "left",
    "right",
    CAMERA_DOWN,
    CAMERA_RIGHT,
    "jump",
    "sneak",
    "sprint",
    "swapHands",
    "attack",
    "use",
    "pickItem",
    "drop",
)
"""The numbers of an action, in the order of the weights."""
MINECRAFT_KEYS = (
    *(f"hotbar.{slot}" for slot in range(1, 10)),
    "forward",
    "left",
    "back",
    "right",
    "jump",
    "sneak",
    "sprint",
    "attack",
    "use",
    "inventory",
    "drop",
    "swapHands",
    "pickItem",
    "ESC",
)
"""The keys of an action, in the order in which the player shows them."""
_COLUMNS = (*MINECRAFT_KEYS, CAMERA_RIGHT, CAMERA_DOWN)


def minecraft_actions() -> ActionSpace:
    """Return the action space: the part ``keys``, and the part ``camera``, a pointer."""
    return ActionSpace.composite(
        ActionPart("keys", len(MINECRAFT_KEYS), names=MINECRAFT_KEYS), ActionPart("pointer", name="camera")
    )


def to_published_actions(actions: Tensor) -> Tensor:
    """Reorder actions of ``minecraft_actions`` [..., 25] for the network."""
    return torch.stack([actions[..., _COLUMNS.index(name)] for name in PUBLISHED_ACTIONS], dim=-1)


def from_published_actions(actions: Tensor) -> Tensor:
    """Reorder actions of a recording of Oasis's authors, float [..., 25], for ``minecraft_actions``."""
    return torch.stack([actions[..., PUBLISHED_ACTIONS.index(name)] for name in _COLUMNS], dim=-1)
