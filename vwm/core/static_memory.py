"""Fixed memory for nested tensors: what captured graphs of kernels read and write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

ALIGNMENT = 256
"""Of tensors in a buffer, in bytes, as CUDA's allocator has it."""


class Layout(NamedTuple):
    """A nested value without its tensors: with as many tensors, it becomes one again."""

    structure: TreeSpec
    others: tuple[Any, ...]
    """The leaves that are no tensors, such as None, and ``Tensor`` in place of each tensor."""

    def join(self, tensors: Iterable[Tensor]) -> Any:
        """Return the nested value."""
        source = iter(tensors)
        return tree_unflatten([next(source) if leaf is Tensor else leaf for leaf in self.others], self.structure)


def split_tensors(value: Any) -> tuple[list[Tensor], Layout]:
    """Return the tensors of a nested value, and the rest of it."""
    leaves, structure = tree_flatten(value)
    others = tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], Layout(structure, others)


class StaticBuffer:
    """Fixed memory for the tensors of a state, which may be lent to callers.

    All of them lie in one piece, so that one reference tells whether anybody still holds any of them.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.shapes = [(tensor.dtype, tensor.shape) for tensor in like]
        self.offsets = [0]
        for tensor in like:
            size = tensor.numel() * tensor.element_size()
            self.offsets.append(self.offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        device = like[0].device if like else torch.device("cpu")
        self.memory = torch.empty(max(self.offsets[-1], ALIGNMENT), dtype=torch.uint8, device=device)
        self.tensors = self._divide(self.memory)
        self.places = [tensor.data_ptr() for tensor in self.tensors]
        self.borrowed: StorageWeakRef | None = None

    def _divide(self, memory: Tensor) -> list[Tensor]:
        """Return the tensors in their places of uint8 memory."""
        parts = []
        for (dtype, shape), (start, stop) in zip(self.shapes, pairwise(self.offsets), strict=True):
            size = shape.numel()
            parts.append(memory[start:stop].view(dtype)[:size].view(shape))
        return parts

    @property
    def is_free(self) -> bool:
        """Whether no tensor outside shares the memory."""
        if self.borrowed is not None and self.borrowed.expired():
            self.borrowed = None
        return self.borrowed is None

    def lend(self) -> list[Tensor]:
        """Return tensors that share the memory but not the storage object, so that their end can be seen."""
        lent = torch.from_dlpack(self.memory)  # type: ignore[attr-defined]
        self.borrowed = StorageWeakRef(lent.untyped_storage())
        return self._divide(lent)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that were lent."""
        return self.borrowed is not None and all(
            tensor.data_ptr() == place and tensor.is_contiguous()
            for tensor, place in zip(tensors, self.places, strict=True)
        )


def copy_tensors(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors, with as few kernels as possible."""
    if targets:
        torch._foreach_copy_(list(targets), list(sources))


def tensor_shapes(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what must be equal for a graph to be used again: shapes, types and devices."""
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
