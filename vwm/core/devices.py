"""The device that a command or a training computes on."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device by its name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        ValueError: there is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"there is no device {device!r}: give auto, cpu, cuda or cuda:1") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        has = f"{count} CUDA devices" if count else "no CUDA device"
        raise ValueError(f"there is no device {device}: this machine has {has}; give auto or cpu")
    return found


def allow_tf32(device: torch.device) -> None:
    """Let CUDA round the factors of float32 matrix products to 11 significant bits (TF32), several times as fast.

    A setting of the process; it changes nothing on a CPU, and for another device it is left as it is.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
