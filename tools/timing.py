"""Time several implementations in turns in one process, for the tools that compare with other projects."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Times = dict[str, dict[str, list[float]]]
"""By implementation: seconds of wall ``clock`` time and of this process's ``cpu`` time, one value per round."""


def race(steps: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", warmup: int = 2) -> Times:
    """Time steps in rounds, so that a temporary slowdown of the machine affects all implementations equally.

    Args:
        steps: one step of each implementation, run once per round.
        repeats: number of timed rounds.
        device: the device that steps run on; its work is included.
        warmup: number of rounds before them.
    """
    times: Times = {name: {"clock": [], "cpu": []} for name in steps}
    for repeat in range(warmup + repeats):
        # Alternate the order, so that no implementation always starts with cold caches.
        for name in list(steps)[:: 1 if repeat % 2 else -1]:
            clock, cpu = time.perf_counter(), time.process_time()
            steps[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if repeat >= warmup:
                times[name]["clock"].append(time.perf_counter() - clock)
                times[name]["cpu"].append(time.process_time() - cpu)
    return times


def medians(times: Times) -> dict[str, dict[str, float]]:
    """Return the median seconds of each implementation."""
    return {name: {kind: statistics.median(each) for kind, each in kinds.items()} for name, kinds in times.items()}


def save(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write figures as JSON, atomically; without a path, do nothing."""
    if path is None:
        return
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps({**content, "torch": torch.__version__}, indent=2) + "\n")
    aside.replace(path)
