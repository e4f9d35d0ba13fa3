"""States of sharded trainings as those of a training in one process, and back.

A checkpoint holds whole tensors, so that a run continues, and is exported, with any number of processes and any
strategy. Gathering is one tensor at a time, in all processes; only the first one keeps them, in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vwm.nn.sharding import is_sharded, shard_like, whole_tensor
from vwm.nn.tensor_parallel import whole_shape


@torch.no_grad()
def whole_module_state(module: nn.Module, keep: bool) -> dict[str, Any]:
    """Return the state of a module, whose weights may be sharded, in the host's memory; to be called in all processes.

    Args:
        module: the module.
        keep: whether this process needs it; otherwise the state is empty.
    """
    weights = dict(module.named_parameters())
    gathered = {name: _gather(value, keep, weights.get(name)) for name, value in module.state_dict().items()}
    return gathered if keep else {}


def load_whole_module_state(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """Load what ``whole_module_state`` returned, which every process has. Raises RuntimeError as torch does."""
    own = module.state_dict() | dict(module.named_parameters())
    parts = {name: _shard_value(value, own[name]) if name in own else value for name, value in state.items()}
    module.load_state_dict(parts, strict=strict)


@torch.no_grad()
def whole_optimizer_state(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """Return the state of an optimizer, as ``whole_module_state`` does of a module."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = optimizer.state_dict()
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_weights = dict(zip(numbers, weights, strict=True))
    gathered = {number: _gather(values, keep, of_weights[number]) for number, values in state["state"].items()}
    return {**_gather({**state, "state": {}}, keep), "state": gathered} if keep else {}


def load_whole_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load what ``whole_optimizer_state`` returned, which every process has."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_weights = {
        number: {name: _shard_value(value, weight) for name, value in state["state"][number].items()}
        for number, weight in zip(numbers, weights, strict=True)
        if number in state["state"]
    }
    optimizer.load_state_dict({**state, "state": of_weights})


def _shard_value(value: Any, weight: Tensor) -> Any:
    if not isinstance(value, Tensor) or is_sharded(value) or value.shape != whole_shape(weight):
        return value
    return shard_like(value, weight)


def _gather(value: Any, keep: bool, weight: Tensor | None = None) -> Any:
    """Replace all tensors in nested dictionaries and lists, which are of a weight or of none, by whole ones."""
    if isinstance(value, Tensor):
        whole = whole_tensor(value.detach(), weight)
        return whole.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: _gather(part, keep, weight) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_gather(part, keep, weight) for part in value])
    return value
