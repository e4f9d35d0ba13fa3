"""Copies of tensors to host memory that a GPU makes while it computes on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """Tensors on their way from a device to host memory.

    On a GPU, a stream of its own copies them into pinned memory as soon as they are computed. Nothing waits for that
    until the arrays are read. Tensors in host memory are taken as they are.

    Args:
        tensors: the first one tells the device; what computes them may still be running.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._computed: torch.cuda.Event | None = None
        self._copied: torch.cuda.Event | None = None
        if device.type != "cuda":
            self._host = [tensor.cpu() for tensor in tensors]
            return
        self._computed = torch.cuda.Event(blocking=True)
        self._computed.record(torch.cuda.current_stream(device))
        aside = _copy_stream(device)
        aside.wait_event(self._computed)
        with torch.cuda.stream(aside):
            self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
                if tensor.is_cuda:  # its memory is not given to others before it is copied
                    tensor.record_stream(aside)
        self._copied = torch.cuda.Event(blocking=True)
        self._copied.record(aside)

    @property
    def is_ready(self) -> bool:
        """Whether the arrays can be read without waiting."""
        return self._copied is None or self._copied.query()

    def wait_until_computed(self) -> None:
        """Return when the device has computed the tensors; they may still be on their way."""
        if self._computed is not None:
            self._computed.synchronize()

    def wait_until_copied(self) -> None:
        """Return when the arrays can be read."""
        if self._copied is not None:
            self._copied.synchronize()

    def arrays(self) -> list[NDArray[Any]]:
        """Return the values of the tensors, in order; the arrays share the copy's memory."""
        self.wait_until_copied()
        return [tensor.numpy() for tensor in self._host]


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
