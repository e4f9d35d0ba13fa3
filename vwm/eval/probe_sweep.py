"""A sweep of learning rates and weight decays trained in one pass.

All heads of the sweep start from the same weights and see the same batches. Each is trained as it would be alone.

Legend: s heads of the sweep, n clips, m test clips, b batch, o outputs.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vwm.core.command_output import progress_bar
from vwm.eval.probe_heads import ProbeHeads

LEARNING_RATES = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)
"""V-JEPA 2's sweep (arXiv 2506.09985, appendix D)."""


class SweepSettings(NamedTuple):
    """Settings of a sweep.

    Attributes:
        learning_rates, weight_decays: each pair is one head.
        epochs: passes over the training clips; the learning rates follow a cosine to 0.
        batch_size: clips per step.
        seed: seed of the initial weights and of the order of the clips.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Learning rate and weight decay of every head."""
        return list(product(self.learning_rates, self.weight_decays))


class SweepResult(NamedTuple):
    """The result of a sweep.

    Attributes:
        predictions: float64 [m, o] of the best head.
        losses: float64 [epochs, s], validation losses after each epoch.
        learning_rate, weight_decay: settings of the best head.
        epoch: epoch (from 1) with the lowest validation loss of the best head.
    """

    predictions: Tensor
    losses: Tensor
    learning_rate: float
    weight_decay: float
    epoch: int


def train_probe_sweep(
    heads: ProbeHeads,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    settings: SweepSettings,
    title: str = "sweep",
) -> SweepResult:
    """Train all heads, keep the weights of each at its lowest validation loss, and return the best head's predictions.

    Args:
        heads: one copy per pair of settings; trained in place.
        train, val: tokens [., n, d], and numbers [., o] or classes int64 [.].
        test: tokens [m, n, d].
        settings: see ``SweepSettings``.
        title: label of the progress bar.
    """
    optimizer = BatchedAdamW(heads, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    batches = math.ceil(len(train[0]) / settings.batch_size)
    best, losses = copy.deepcopy(heads), []
    lowest = torch.full((len(settings.pairs),), torch.inf, dtype=torch.float64, device=test.device)
    for epoch in progress_bar(range(settings.epochs), desc=title, unit="epoch"):
        order = torch.randperm(len(train[0]), generator=generator).to(test.device)
        for i, rows in enumerate(order.split(settings.batch_size)):
            loss = per_head_loss(heads(train[0][rows]), train[1][rows])
            optimizer.step(loss, (epoch * batches + i) / (settings.epochs * batches))
        losses.append(_validation_losses(heads, *val, settings.batch_size))
        better = losses[-1] < lowest
        lowest = torch.where(better, losses[-1], lowest)
        with torch.no_grad():
            for kept, now in zip(best.parameters(), heads.parameters(), strict=True):
                kept[better] = now[better]
    validation_losses = torch.stack(losses)
    winner = int(lowest.argmin())
    learning_rate, weight_decay = settings.pairs[winner]
    with torch.inference_mode():
        predictions = [best(part)[winner].double() for part in test.split(settings.batch_size)]
    return SweepResult(
        predictions=torch.cat(predictions),
        losses=validation_losses,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        epoch=int(validation_losses[:, winner].argmin()) + 1,
    )


def per_head_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean loss of each head, [s], from [s, b, o] and numbers [b, o] (squared error) or classes [b]."""
    if labels.is_floating_point():
        return (outputs - labels).square().mean(dim=(1, 2))
    every = F.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
    return every.unflatten(0, outputs.shape[:2]).mean(dim=1)


@torch.inference_mode()
def _validation_losses(heads: ProbeHeads, tokens: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Compute the loss of each head on a whole part, float64 [s]; infinite for a diverged head."""
    parts = zip(tokens.split(batch_size), labels.split(batch_size), strict=True)
    total = torch.stack([per_head_loss(heads(x), y).double() * len(x) for x, y in parts]).sum(dim=0)
    return (total / len(tokens)).nan_to_num(nan=torch.inf)


class BatchedAdamW:
    """AdamW (arXiv 1711.05101) with a separate learning rate and weight decay for every copy.

    It is torch's optimizer on the slices of the weights. Biases, norms and other vectors have no weight decay.
    """

    def __init__(self, heads: ProbeHeads, settings: SweepSettings) -> None:
        groups: list[dict[str, Any]] = []
        for i, (rate, decay) in enumerate(settings.pairs):
            slices: dict[bool, list[Tensor]] = {True: [], False: []}
            for w in heads.parameters():
                w.grad = torch.zeros_like(w) if w.grad is None else w.grad
                part = torch.nn.Parameter(w.detach()[i])
                part.grad = w.grad[i]  # a view of w.grad, which must therefore not become None
                slices[w.ndim > 2].append(part)  # a matrix for every copy
            groups += [{"params": slices[True], "weight_decay": decay, "peak": rate}]
            groups += [{"params": slices[False], "weight_decay": 0.0, "peak": rate}]
        self.heads = heads
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def step(self, loss: Tensor, progress: float) -> None:
        """Take one step on the losses of all heads, [s]; ``progress`` in 0..1 sets the cosine learning rate."""
        self.heads.zero_grad(set_to_none=False)
        loss.sum().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (0.5 + 0.5 * math.cos(math.pi * progress))
        self.optimizer.step()
