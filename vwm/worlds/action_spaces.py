"""The action space of a simulator as a Gymnasium space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from vwm.core.spaces import ActionSpace


def gymnasium_action_space(space: ActionSpace, flat: bool = False) -> spaces.Space[Any]:
    """Return ``Discrete``, ``Box``, or a ``Dict`` of the parts of composite actions.

    Args:
        space: the simulator's.
        flat: composite actions as one ``Box`` that stands for them (see ``ActionSpace.from_flat``), for agents that
            take no ``Dict``.
    """
    if space.is_discrete:
        return spaces.Discrete(space.size)
    if flat or not space.is_composite:
        return spaces.Box(-1.0, 1.0, (space.size,), np.float32)
    parts: list[tuple[str, spaces.Space[Any]]] = []
    for part in space.parts:
        if part.kind == "choice":
            parts.append((part.name, spaces.Discrete(part.size)))
        elif part.kind == "keys":
            parts.append((part.name, spaces.MultiBinary(part.size)))
        else:
            parts.append((part.name, spaces.Box(-1.0, 1.0, (part.size,), np.float32)))
    return spaces.Dict(parts)


def to_action_tensor(actions: Any, space: ActionSpace, count: int, flat: bool = False) -> Tensor:
    """Convert a batch of ``count`` actions of ``gymnasium_action_space(space, flat)`` for the simulator."""
    if flat or not space.is_composite:
        array = np.asarray(actions, dtype=np.int64 if space.is_discrete else np.float32)
        return space.from_flat(torch.as_tensor(array))
    columns = [np.asarray(actions[part.name], np.float32).reshape(count, part.columns) for part in space.parts]
    return torch.from_numpy(np.concatenate(columns, axis=1))
