"""Optimizers in captured updates: what they count must be on the device, since a graph repeats Python's numbers."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping

from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from vwm.rl.algorithms.laprop import LaProp


def make_capturable(owner: str, optimizers: Mapping[str, Optimizer]) -> bool:
    """Let optimizers take steps that can be captured; return whether all of them can, or warn.

    Adam and AdamW then use one fused kernel and count their steps on the device; ``LaProp`` always does.

    Args:
        owner: of the optimizers, for the warning.
        optimizers: by name; changed in place.
    """
    for optimizer in optimizers.values():
        if not isinstance(optimizer, Adam | LaProp | SGD):
            kind = type(optimizer).__name__
            warnings.warn(
                f"updates of {owner} are not accelerated: {kind} counts its steps outside of the device; choose adamw",
                stacklevel=3,
            )
            return False
        if isinstance(optimizer, Adam):
            _make_adam_capturable(optimizer)
    return True


def _make_adam_capturable(optimizer: Adam) -> None:
    for group in optimizer.param_groups:
        group["fused"] = True
        group["foreach"] = False
        group["capturable"] = all(weight.is_cuda for weight in group["params"])
        for weight in group["params"]:
            if "step" in (state := optimizer.state.get(weight, {})):
                state["step"] = state["step"].to(weight.device)
    optimizer._warned_capturable_if_run_uncaptured = True


def optimizer_tensors(optimizers: Mapping[str, Optimizer]) -> list[Tensor]:
    """Return all tensors that optimizers hold beside weights and gradients."""
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    return [value for values in (*groups, *states) for value in values.values() if isinstance(value, Tensor)]


def optimizer_settings(optimizers: Mapping[str, Optimizer]) -> Hashable:
    """Return the numbers that steps depend on, such as learning rates that are no tensors."""
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    return tuple(
        (name, value)
        for group in groups
        for name, value in group.items()
        if isinstance(value, int | float | tuple) and name != "params"
    )
