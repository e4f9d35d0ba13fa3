"""The device that a command or a training computes on."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""Of a world's dynamics. ``auto`` is bfloat16 on a GPU that multiplies it natively, and float32 elsewhere."""


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
    if found.type == "mps" and torch.backends.mps.is_available():
        return found
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"there is no device {device} that vwm computes on: give auto, cpu, cuda or cuda:1")
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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively: many GPUs, and CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision: Precision, device: torch.device, bfloat16_on_cpu: bool = False) -> torch.dtype:
    """Return the type of a world's dynamics.

    Args:
        precision: see ``Precision``.
        device: that computes.
        bfloat16_on_cpu: whether ``auto`` uses bfloat16 on CPUs, too, as the player does: a step takes less than half
            the time, but a simulation in a batch no longer equals the same one alone.

    Raises:
        ValueError: there is no such precision.
    """
    if precision == "auto":
        usable = (device.type == "cuda" or bfloat16_on_cpu) and multiplies_bfloat16(device)
        return torch.bfloat16 if usable else torch.float32
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision={precision!r} must be auto, float32 or bfloat16")
    return torch.float32 if precision == "float32" else torch.bfloat16
