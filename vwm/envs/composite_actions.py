"""Gymnasium's nested action spaces as composite actions, one row of columns, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart, read_action_parts

POINTER_NAMES = ("pointer", "mouse", "camera")
"""Names of boxes of two numbers that are a relative pointer."""


class CompositeEnvActions:
    """The composite actions of an environment.

    ``Discrete`` becomes a choice (a key where it has two values and is one of several), ``MultiBinary`` keys,
    ``MultiDiscrete`` choices, and a flat ``Box`` axes, or a pointer where its name is one of ``POINTER_NAMES``;
    ``Dict`` and ``Tuple`` hold any of them.

    Args:
        space: the environment's action space.
        stated: the parts with the names that the environment gives them (its attribute ``action_parts``).

    Attributes:
        parts: of the actions, in the order of the columns.
        low, high: float32 [A], the values in the environment's own units that the lowest and highest value of a column
            stand for.

    Raises:
        ValueError: a space that is not supported, or stated parts of other columns.
    """

    def __init__(self, space: spaces.Space[Any], stated: Any = None) -> None:
        self.space = space
        parts: list[ActionPart] = []
        bounds: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        for name, leaf in _leaves(space, ""):
            for part, low, high in _leaf_parts(name, leaf, alone=leaf is space):
                parts.append(part)
                bounds.append((low, high))
        self.low, self.high = (np.concatenate([pair[end] for pair in bounds]) for end in (0, 1))
        self.parts = tuple(parts)
        if stated is not None:
            self.parts = read_action_parts(stated)
            if [(part.is_whole, part.size) for part in self.parts] != [(part.is_whole, part.size) for part in parts]:
                raise ValueError(f"action_parts {self.parts} do not fit the action space {space}")

    def to_env(self, row: NDArray[np.float32]) -> Any:
        """Turn a row [A], its axes and pointers in [-1, 1], into an action of the environment."""
        return _take(self.space, list(row), list(self.low), list(self.high))


def is_composite_space(space: spaces.Space[Any]) -> bool:
    """Whether a space is neither a plain ``Discrete`` nor a plain ``Box``."""
    return isinstance(space, spaces.Dict | spaces.Tuple | spaces.MultiBinary | spaces.MultiDiscrete)


def _leaves(space: spaces.Space[Any], name: str) -> Iterator[tuple[str, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, space


def _leaf_parts(
    name: str, leaf: spaces.Space[Any], alone: bool
) -> Iterator[tuple[ActionPart, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the parts of a leaf, and what the lowest and highest value of each of their columns stands for."""
    if isinstance(leaf, spaces.Discrete):
        is_key = leaf.n == 2 and not alone
        part = ActionPart("keys", 1, name, (name,)) if is_key else ActionPart("choice", int(leaf.n), name)
        yield part, *_whole_bounds(1, int(leaf.start), int(leaf.n))
    elif isinstance(leaf, spaces.MultiBinary) and len(leaf.shape) == 1:
        yield ActionPart("keys", leaf.shape[0], name), *_whole_bounds(leaf.shape[0], 0, 2)
    elif isinstance(leaf, spaces.MultiDiscrete) and len(leaf.shape) == 1:
        for index, (count, start) in enumerate(zip(leaf.nvec, leaf.start, strict=True)):
            part = ActionPart("choice", int(count), f"{name}.{index}" if name else f"choice {index}")
            yield part, *_whole_bounds(1, int(start), int(count))
    elif isinstance(leaf, spaces.Box) and len(leaf.shape) == 1:
        low, high = (np.nan_to_num(b, posinf=1, neginf=-1).astype(np.float32) for b in (leaf.low, leaf.high))
        if leaf.shape == (2,) and name.rpartition(".")[2].lower() in POINTER_NAMES:
            yield ActionPart("pointer", name=name), low, high
        else:
            rest = tuple(normalized_rest(low, high))
            yield ActionPart("axes", leaf.shape[0], name, rest=rest if any(rest) else ()), low, high
    else:
        raise ValueError(f"action {name or 'space'} is {leaf}; supported are Discrete, MultiBinary, MultiDiscrete and "
                         "flat Box, and Dict and Tuple of them")  # fmt: skip


def _whole_bounds(columns: int, start: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    low = np.full(columns, start, np.float32)
    return low, low + count - 1


def normalized_rest(low: NDArray[np.float32], high: NDArray[np.float32]) -> list[float]:
    """Return the value in [-1, 1] of each dimension that is 0 between its bounds, or nearest to it."""
    width = np.maximum(high - low, np.finfo(np.float32).tiny)
    return [float(value) for value in 2 * (np.clip(0, low, high) - low) / width - 1]


def denormalize(
    actions: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Map actions [..., A] from [-1, 1] to [low, high]."""
    return (low + (actions + 1) / 2 * (high - low)).clip(low, high)


def _take(space: spaces.Space[Any], columns: list[Any], low: list[Any], high: list[Any]) -> Any:
    """Build the action of a space from the first columns, and remove them and their bounds."""
    if isinstance(space, spaces.Dict):
        return {key: _take(inner, columns, low, high) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_take(inner, columns, low, high) for inner in space.spaces)
    count = int(np.prod(space.shape or ()))
    values, lows, highs = (np.array(rows[:count], np.float32) for rows in (columns, low, high))
    for rows in (columns, low, high):
        del rows[:count]
    if isinstance(space, spaces.Discrete):
        return int(values[0] + lows[0])
    if isinstance(space, spaces.Box):
        return denormalize(values, lows, highs).astype(space.dtype)
    return (values + lows).astype(space.dtype)
