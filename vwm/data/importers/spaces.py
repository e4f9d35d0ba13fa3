"""Spaces of Gymnasium as Minari writes them in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vwm.data.importers.source import ActionBounds


def bounds_of_space(space: Mapping[str, Any]) -> ActionBounds | None:
    """Return the bounds of a box; None for other spaces, and for boxes that are open on a side."""
    if space.get("type") != "Box":
        return None
    low, high = (np.array(space[name], float).reshape(-1) for name in ("low", "high"))
    return ActionBounds(low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None
