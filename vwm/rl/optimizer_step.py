"""Updates and steps of optimizers, which count only where the numbers are finite; every agent uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.captured_updates import CapturedUpdates, defer_check


def run_update(
    captured: CapturedUpdates | None,
    name: Hashable,
    learn: Callable[[Any], tuple[Mapping[str, Tensor], Any]],
    inputs: Any,
) -> tuple[dict[str, float], Any]:
    """Make an update, from a captured graph where updates are captured.

    Args:
        captured: what captures; None computes plainly.
        name: identifies ``learn``, see ``CapturedUpdates``.
        learn: makes the update; returns what to log, tensors [], and other tensors.
        inputs: its nested tensors.

    Returns:
        What to log as numbers, and the other tensors.

    Raises:
        FloatingPointError: some number is not finite; no weight was changed by this batch.
    """
    if captured is None:
        logs, others = learn(inputs)
        return check_finite(logs), others
    (logs, others), checks = captured(name, learn, inputs)
    try:
        values = check_finite({**checks, **logs})
    except FloatingPointError:
        captured.undo()
        raise
    return {name: values[name] for name in logs}, others


def require_finite(numbers: Mapping[str, Tensor]) -> None:
    """Check numbers before a step changes weights; in an update that is captured, after it (see ``run_update``).

    Raises:
        FloatingPointError: some are not finite.
    """
    if not defer_check(numbers):
        check_finite(numbers)


def check_finite(numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return losses and logged values as plain numbers, waiting for the device once.

    Args:
        numbers: tensors [] on one device, or plain numbers.

    Raises:
        FloatingPointError: some are not finite; no weight was changed by this batch yet.
    """
    if not numbers:
        return {}
    device = next((x.device for x in numbers.values() if isinstance(x, Tensor)), None)
    values = [torch.as_tensor(x, device=device).detach().double() for x in numbers.values()]
    plain = dict(zip(numbers, torch.stack(values).tolist(), strict=True))
    broken = {name: value for name, value in plain.items() if not math.isfinite(value)}
    if broken:
        listed = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise FloatingPointError(f"{listed}: nothing was learned from this batch; lower the learning rate")
    return plain


def backward_and_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    parameters: Iterable[nn.Parameter] | None = None,
    name: str = "loss",
) -> Tensor:
    """Compute the gradients of a loss and take one step; see ``clip_and_step``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return clip_and_step(optimizer, max_norm, parameters, name, loss)


def clip_and_step(
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    parameters: Iterable[nn.Parameter] | None = None,
    name: str = "loss",
    loss: Tensor | None = None,
) -> Tensor:
    """Clip the gradients that are there and take one step.

    Args:
        optimizer: takes the step.
        max_norm: largest norm of the gradients of ``parameters`` together.
        parameters: by default those of the optimizer.
        name: of the loss, for the error.
        loss: checked together with the norm.

    Returns:
        The norm before it was clipped, [].

    Raises:
        FloatingPointError: the loss or the norm is not finite; no weight was changed.
    """
    if parameters is None:
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    require_finite(({} if loss is None else {name: loss.detach()}) | {f"the gradient's norm of {name}": norm})
    optimizer.step()
    return norm
