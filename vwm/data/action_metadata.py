"""What the metadata of an episode say about its composite actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vwm.core.action_parts import read_action_parts
from vwm.core.spaces import ActionSpace


def known_action_parts(meta: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Return whether each part of an episode's composite actions is known; empty for other actions.

    Args:
        meta: metadata with ``action_parts``, and with ``unknown_action_parts``, names of parts, where some are unknown.
        shape: [T, A] of the actions.

    Raises:
        ValueError: the metadata are invalid, or do not fit the shape.
    """
    if not meta.get("action_parts"):
        return ()
    parts = read_action_parts(meta["action_parts"])
    space = ActionSpace.composite(*parts)
    if shape[1:] != space.shape:
        raise ValueError(f"action_parts have {space.size} columns ({', '.join(space.names)}), the actions are "
                         f"{list(shape)}")  # fmt: skip
    names, unknown = [part.name for part in parts], meta.get("unknown_action_parts") or []
    if not isinstance(unknown, list) or not set(map(str, unknown)) <= set(names):
        raise ValueError(f"unknown_action_parts must be a list of {', '.join(names)}, got {str(unknown)[:100]}")
    return tuple(name not in unknown for name in names)
