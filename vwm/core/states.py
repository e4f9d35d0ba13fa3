"""Operations on streaming states, which are values: nested tuples and dicts of tensors with the batch first.

Every function returns a new state and leaves the given ones alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_iter, tree_map, tree_unflatten

NestedState = Any


def state_batch_size(state: NestedState) -> int:
    """Return the number of worlds in a state."""
    return int(next(iter(tree_iter(state))).shape[0])


def select_worlds(state: NestedState, worlds: Tensor) -> NestedState:
    """Select worlds by indices (int64 [m]; repeated ones branch) or by a mask (bool [b])."""
    return tree_map(lambda leaf: leaf[worlds], state)


def merge_states(mask: Tensor, new: NestedState, old: NestedState) -> NestedState:
    """Take ``new`` for the worlds where the mask (bool [b]) is True, and ``old`` elsewhere."""
    return tree_map(lambda n, o: torch.where(mask.view(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def replace_worlds(mask: Tensor, new: NestedState, old: NestedState) -> NestedState:
    """Replace the worlds of ``old`` under the mask (bool [b]) by those of ``new``, one for each, in order."""
    place = (mask.cumsum(0) - 1).clamp(min=0)
    return merge_states(mask, select_worlds(new, place), old)


def concatenate_states(states: list[NestedState]) -> NestedState:
    """Concatenate the worlds of several states to one batch."""
    return tree_map(lambda *leaves: torch.cat(leaves), *states)


def split_worlds(state: NestedState) -> list[NestedState]:
    """Split a batch into states of one world each, which share no memory."""
    leaves, structure = tree_flatten(state)
    views = [leaf.split(1) for leaf in leaves]  # by leaf, then by world
    copies = [[torch.empty_like(view, memory_format=torch.contiguous_format) for view in leaf] for leaf in views]
    torch._foreach_copy_([copy for leaf in copies for copy in leaf], [view for leaf in views for view in leaf])
    return [tree_unflatten(list(worlds), structure) for worlds in zip(*copies, strict=True)]


def map_state(function: Callable[[Tensor], Tensor], state: NestedState) -> NestedState:
    """Apply a function to every tensor, for example a move to another device."""
    return tree_map(function, state)
