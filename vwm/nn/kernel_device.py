"""The device whose kernels a tensor is computed by: its own, or the one that the meta device stands for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_stands_for: str | None = None


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """Choose the kernels of a device type for tensors on the meta device, inside the with-statement."""
    global _stands_for
    before, _stands_for = _stands_for, device
    try:
        yield
    finally:
        _stands_for = before


def kernel_device(x: Tensor) -> str:
    """Return the device type whose kernels compute a tensor."""
    own: str = x.device.type
    return _stands_for if own == "meta" and _stands_for is not None else own
