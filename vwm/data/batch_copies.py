"""Copies of batches to an accelerator that overlap with what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from vwm.data.clips import ClipBatch

HOST_FIELDS = ("seed",)
"""Fields that stay in the host's memory: masks are drawn from the seeds there, without waiting for the device."""


def copy_ahead(batches: Iterable[ClipBatch], device: torch.device) -> Iterator[ClipBatch]:
    """Yield batches on a device, in the same order; the copy of the next one begins before a batch is yielded.

    Args:
        batches: in pinned memory, for copies that the host does not wait for.
        device: the device; on CUDA, copies have a stream of their own.
    """
    copies = CudaBatchCopies(device) if device.type == "cuda" else BatchCopies(device)
    ahead: ClipBatch | None = None
    for batch in batches:
        following = copies.begin(batch)
        if ahead is not None:
            yield copies.finish(ahead)
        ahead = following
    if ahead is not None:
        yield copies.finish(ahead)


class BatchCopies:
    """Copies to a device without streams.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin(self, batch: ClipBatch) -> ClipBatch:
        """Return the batch on the device, where it may not have arrived yet."""
        tensors = {name: x for name, x in vars(batch).items() if x is not None and name not in HOST_FIELDS}
        return ClipBatch(**vars(batch) | {name: x.to(self.device, non_blocking=True) for name, x in tensors.items()})

    def finish(self, batch: ClipBatch) -> ClipBatch:
        """Let what is computed from now on wait for the oldest copy that was begun, that of ``batch``."""
        return batch


class CudaBatchCopies(BatchCopies):
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._events: list[torch.Event] = []

    def begin(self, batch: ClipBatch) -> ClipBatch:
        """See ``BatchCopies``."""
        with torch.cuda.stream(self._stream):
            copied = super().begin(batch)
            self._events.append(self._stream.record_event())
        return copied

    def finish(self, batch: ClipBatch) -> ClipBatch:
        """See ``BatchCopies``."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self._events.pop(0))
        for name, tensor in vars(batch).items():
            if tensor is not None and name not in HOST_FIELDS:
                tensor.record_stream(current)  # or a later copy might get its memory while it is in use
        return batch
