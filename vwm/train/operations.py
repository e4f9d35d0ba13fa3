"""How many floating point operations a training step takes, counted as it runs, and how many devices can do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from vwm.core.blocks import uncompiled_blocks
from vwm.nn.attention_kernels import without_packing
from vwm.nn.recomputation import without_recomputation
from vwm.nn.training_module import TrainingModule, batch_size

PEAK_TERAFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0, "H200": 989.0, "GH200": 989.0,
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s of devices, by a part of their name, according to NVIDIA's data sheets."""
CLIPS = 2
"""Clips of a batch on which operations are counted; uncompiled, a whole batch might not fit into memory."""


def find_peak_teraflops(device_name: str) -> float | None:
    """Return the dense bfloat16 TFLOP/s of a device; None where it is not known."""
    words = f" {device_name.replace('-', ' ')} "
    return next((peak for name, peak in PEAK_TERAFLOPS.items() if f" {name} " in words), None)


def count_operations(module: TrainingModule, batch: Any) -> float:
    """Count the useful floating point operations of a loss and its gradients: two for each multiply-add.

    They are those of matrix products, convolutions and attention (all pairs of queries and keys, masked ones
    included) of the forward and the backward pass, without what the backward pass computes again. The loss of some of
    the batch's clips is computed for it; buffers and random generators are restored.

    Args:
        module: the module, on its device, in a context of its precision.
        batch: a batch as ``module`` gets it.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a fifth of a second to import

    total = batch_size(batch)
    counted = total if getattr(batch, "indivisible", False) else min(CLIPS, total)
    few = _first_clips(batch, total, counted)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with (
        _restored(module),
        uncompiled_blocks(module),
        without_recomputation(module),
        without_packing(),
        torch.enable_grad(),
        counter,
    ):
        loss, _ = module(few)
        if loss.requires_grad:
            torch.autograd.grad(loss, weights, allow_unused=True)  # unlike backward, it leaves gradients as they are
    return float(counter.get_total_flops()) * total / counted


class _NoModules(nullcontext[None]):
    """Replaces what finds the module of each operation, which cannot follow ``autograd.grad`` to weights as inputs."""

    parents = ("Global",)


@contextmanager
def _restored(module: TrainingModule) -> Iterator[None]:
    """Undo changes of buffers and of random generators."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])


def _first_clips(value: Any, total: int, count: int) -> Any:
    """Select the first clips in every tensor of a batch."""
    if isinstance(value, Tensor):
        return value[:count] if value.ndim and len(value) == total else value
    if isinstance(value, list):
        return [_first_clips(part, total, count) for part in value]
    if isinstance(value, tuple):
        parts = [_first_clips(part, total, count) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        parts_by_name = {f.name: _first_clips(getattr(value, f.name), total, count) for f in fields(value)}
        return type(value)(**parts_by_name)
    return value


def _formulas() -> dict[Any, Any]:
    """Formulas that torch's counter lacks, or in which it counts what the backward pass computes again."""
    aten: Any = torch.ops.aten
    formulas: dict[Any, Any] = {}
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu"):
        forward, backward = (f"_scaled_dot_product_{kernel}{suffix}" for suffix in ("", "_backward"))
        if hasattr(aten, backward):
            formulas |= {getattr(aten, forward): _attention, getattr(aten, backward): _attention_backward}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear
    return formulas


def _linear(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """q [b, h, t, c], k and v [b, g, s, c]: the logits, and the weighted sum of the values."""
    return 2 * math.prod(q[:3]) * k[2] * (q[3] + v[3])


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """Two products for each of the forward pass; torch's formula adds the logits, which the kernels compute again."""
    return 2 * _attention(q, k, v)
