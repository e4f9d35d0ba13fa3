"""Choose the number of CPU threads by measurement: on a busy machine, all cores can be much slower than one."""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch import nn

REPEATS = 3
"""Timings of each number of threads, in turn, of which the median counts."""
MARGIN = 1.25
"""How much slower more threads may be in these timings, and are still preferred: larger layers use them better."""


def fastest_thread_count() -> int:
    """Time training steps of a small layer with one thread, half of the cores and all cores.

    The threads of an operation wait for the last of them: where another process holds one of two cores, two threads
    can take several times as long as one.
    """
    cores = os.cpu_count() or 1
    before = torch.get_num_threads()
    candidates = sorted({1, max(1, cores // 2), cores})
    with torch.random.fork_rng(devices=[]):
        layer = nn.TransformerEncoderLayer(192, 6, 768, dropout=0.0, batch_first=True)
        x = torch.randn(16, 64, 192)
    seconds: dict[int, list[float]] = {threads: [] for threads in candidates}
    try:
        _time_step(layer, x, 1)  # the first one allocates memory
        for _ in range(REPEATS):
            for threads in candidates:
                seconds[threads].append(_time_step(layer, x, threads))
    finally:
        torch.set_num_threads(before)
    medians = {threads: statistics.median(times) for threads, times in seconds.items()}
    return max(threads for threads in candidates if medians[threads] <= MARGIN * min(medians.values()))


def _time_step(layer: nn.Module, x: torch.Tensor, threads: int) -> float:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = layer(x).square().mean()
    loss.backward()
    return time.perf_counter() - began
