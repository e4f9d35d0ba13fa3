"""Timing for the benchmarks: medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def limit_threads(threads: int | None) -> Iterator[None]:
    """Set the number of torch's threads inside the block; None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def measure_seconds(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the seconds that the block takes, including the accelerator's work."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - start)


def format_timings(values: list[float], scale: float, unit: str) -> str:
    """Describe measurements by their median, quartiles and percentiles, multiplied by ``scale``."""
    low, first, median, third, high = np.percentile(np.array(values) * scale, (5, 25, 50, 75, 95))
    return (
        f"median {median:.1f} {unit} (quartiles {first:.1f}-{third:.1f}, p5-p95 {low:.1f}-{high:.1f}, n={len(values)})"
    )
