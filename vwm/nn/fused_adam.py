"""One kernel for the whole step of Adam on CUDA, of sharded weights too."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor
from torch.optim import Adam, Optimizer

from vwm.nn.sharding import is_sharded, local_part


def fuse_adam_on_cuda(*optimizers: Optimizer) -> None:
    """Let each Adam and AdamW update all weights of a group in one kernel, where they are on CUDA.

    To be called after the weights are moved to their device, and before the first step. An optimizer constructed with
    ``fused=True`` would also unscale gradients by itself, and Lightning refuses to clip them for it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, Adam) else ():
            if all(weight.is_cuda for weight in group["params"]):
                group["fused"] = True


def update_local_parts(optimizer: Optimizer) -> None:
    """Let Adam and AdamW update this process's parts of sharded weights, which torch's kernels take together.

    Adam computes each element by itself. Other optimizers get whole weights as ``DTensor``, which is slower.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if isinstance(optimizer, Adam) and any(is_sharded(weight) for weight in weights):
        optimizer._init_group = MethodType(_init_group_of_parts, optimizer)  # type: ignore[method-assign]


def _init_group_of_parts(optimizer: Adam, group: dict[str, Any], *lists: list[Tensor]) -> Any:
    """Fill the lists of weights, gradients and states of a group, as torch's ``_init_group``, with local parts."""
    result = type(optimizer)._init_group(optimizer, group, *lists)
    for tensors in lists:
        tensors[:] = [local_part(tensor) for tensor in tensors]
    return result
