"""What one does with streaming states, which are values: nested tuples and dicts of tensors with the batch first.

Every function returns a new state and leaves the given ones alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

State = Any


def batch_size(state: State) -> int:
    """The number of worlds in a state."""
    return int(tree_leaves(state)[0].shape[0])


def select(state: State, worlds: Tensor) -> State:
    """The worlds at the given places (int64 [m], repeats allowed: branching) or under a mask (bool [b])."""
    return tree_map(lambda leaf: leaf[worlds], state)


def merge(mask: Tensor, new: State, old: State) -> State:
    """World by world: ``new`` where the mask (bool [b]) is True, ``old`` elsewhere."""
    return tree_map(lambda n, o: torch.where(mask.view(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def replace(mask: Tensor, new: State, old: State) -> State:
    """``old`` with the worlds under the mask (bool [b]) replaced by those of ``new``, which are as many, in order."""
    place = (mask.cumsum(0) - 1).clamp(min=0)
    return merge(mask, select(new, place), old)


def concatenate(states: list[State]) -> State:
    """One batch of all worlds of several states."""
    return tree_map(lambda *leaves: torch.cat(leaves), *states)


def apply(function: Callable[[Tensor], Tensor], state: State) -> State:
    """A function of every tensor, for example a move to another device."""
    return tree_map(function, state)
