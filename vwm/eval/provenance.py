"""The provenance of a report: software, hardware, weights and data, so that its numbers can be reproduced."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vwm.core.network_simulator import NetworkSimulator
from vwm.core.version import VERSION
from vwm.hub.weight_hash import hash_weights


def collect_provenance(
    simulator: NetworkSimulator, bundle: Path, data: str, index_hash: str, part: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Describe how a report was made: bundle and weights, clips (of a part of the data), settings, machine."""
    return {
        "bundle": str(bundle),
        "bundle_hash": hash_weights(bundle),
        "parts": network_summary(simulator),
        "data": data,
        "index_hash": index_hash,
        "part": part,
        "settings": settings,
        "environment": environment_info(simulator.device),
    }


def environment_info(device: torch.device) -> dict[str, Any]:
    """Describe versions, date and hardware, with its load: the mean number of busy processes in the last minute."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"vwm": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "device": str(device),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def network_summary(simulator: NetworkSimulator) -> dict[str, dict[str, Any]]:
    """Return the number of parameters and the precision (which depends on the machine) of each network."""
    return {
        name: {"parameters": sum(p.numel() for p in part.parameters()), "precision": _precision(part)}
        for name, part in simulator.networks().items()
    }


def _precision(part: torch.nn.Module) -> str | None:
    """Return the type of the parameters; None without parameters."""
    first = next(part.parameters(), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")
