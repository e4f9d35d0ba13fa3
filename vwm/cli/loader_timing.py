"""Timing of data loaders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from vwm.data.datamodule import ClipLoader


def cycle_batches(loader: ClipLoader) -> Iterator[Any]:
    """Yield the batches of one epoch after the other, without end."""
    while True:
        yield from loader


def time_batches(iterator: Iterator[Any], batches: int, batch_size: int, warm_up: int) -> float:
    """Return clips per second.

    Args:
        iterator: of batches.
        batches: that are timed.
        batch_size: clips of a batch.
        warm_up: batches before those: at least as many as its workers read ahead.
    """
    for _ in islice(iterator, warm_up):
        pass
    began = time.perf_counter()
    for _ in islice(iterator, batches):
        pass
    return batches * batch_size / (time.perf_counter() - began)
