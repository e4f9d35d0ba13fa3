"""The memory of tensors while they live, counted operation by operation: on the meta device, without having it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations inside the with-statement make, until they are freed.

    Views share the memory of their base. What an operation needs while it runs (workspaces) is not counted.

    Attributes:
        live: bytes now.
        peak: most bytes since ``restart_peak``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See ``TorchDispatchMode``."""
        before = {id(x.untyped_storage()) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in before:
                self._add(tensor)
        return out

    def add_bytes(self, size: int) -> None:
        """Count bytes that no operation here allocates, such as gathered weights; negative ones are freed."""
        self.live += size
        self.peak = max(self.peak, self.live)

    def restart_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live

    def exclude(self, tensors: Iterable[Tensor | None]) -> int:
        """Stop counting tensors that are still alive, and return their bytes."""
        total = 0
        for tensor in tensors:
            if tensor is not None:
                total += self._remove(id(tensor.untyped_storage()))
        return total

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._references[key] = weakref.ref(storage, lambda _: self._remove(key))
        self.add_bytes(self._sizes[key])

    def _remove(self, key: int) -> int:
        size = self._sizes.pop(key, 0)
        self._references.pop(key, None)
        self.live -= size
        return size


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    storages = {id(x.untyped_storage()): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())
