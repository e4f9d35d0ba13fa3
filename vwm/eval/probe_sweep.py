"""A sweep of learning rates and weight decays trained in one pass.

All heads of the sweep start from the same weights and see the same batches; what each becomes is what it would have
become alone.

Legend: s heads of the sweep, n clips, m clips to judge on, b batch, o outputs.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vwm.eval.probe_heads import ProbeHeads

LEARNING_RATES = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)
"""V-JEPA 2's sweep (arXiv 2506.09985, appendix D)."""


class SweepSettings(NamedTuple):
    """Of a sweep.

    Attributes:
        rates, decays: learning rates and weight decays; every pair is a head.
        epochs: passes over the training clips; the rates fall to 0 as a cosine.
        batch_size: clips a step.
        seed: of the first weights and of the order of the clips.
    """

    rates: tuple[float, ...] = LEARNING_RATES
    decays: tuple[float, ...] = WEIGHT_DECAYS
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of every head."""
        return list(product(self.rates, self.decays))


class SweepResult(NamedTuple):
    """What a sweep found.

    Attributes:
        predictions: float64 [m, o] of the best head.
        losses: float64 [epochs, s], of the validation clips after each epoch.
        rate, decay, epoch: of the best head, and after which epoch (from 1) it was best.
    """

    predictions: Tensor
    losses: Tensor
    rate: float
    decay: float
    epoch: int


def train_probe_sweep(
    heads: ProbeHeads,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: Tensor,
    settings: SweepSettings,
    title: str = "sweep",
) -> SweepResult:
    """Train all heads, keep each as it was when it was best on the validation clips, and take the best of them.

    Args:
        heads: as many copies as the settings have pairs; they are trained in place.
        train, val: tokens [., n, d], and numbers [., o] or classes int64 [.].
        test: tokens [m, n, d].
        settings: see ``SweepSettings``.
        title: for the progress bar.
    """
    optimizer = BatchedAdamW(heads, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    batches = math.ceil(len(train[0]) / settings.batch_size)
    best, losses = copy.deepcopy(heads), []
    lowest = torch.full((len(settings.pairs),), torch.inf, dtype=torch.float64, device=test.device)
    for epoch in tqdm(range(settings.epochs), desc=title, unit="epoch", disable=None):
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
    found = torch.stack(losses)
    winner = int(lowest.argmin())
    rate, decay = settings.pairs[winner]
    with torch.inference_mode():
        said = [best(part)[winner].double() for part in test.split(settings.batch_size)]
    return SweepResult(torch.cat(said), found, rate, decay, int(found[:, winner].argmin()) + 1)


def per_head_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each head: [s, b, o] against numbers [b, o] (squared error) or classes int64 [b] -> [s]."""
    if labels.is_floating_point():
        return (outputs - labels).square().mean(dim=(1, 2))
    every = F.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
    return every.unflatten(0, outputs.shape[:2]).mean(dim=1)


@torch.inference_mode()
def _validation_losses(heads: ProbeHeads, tokens: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Of a whole part: float64 [s]; a head that has lost its way has an infinite one."""
    parts = zip(tokens.split(batch_size), labels.split(batch_size), strict=True)
    total = torch.stack([per_head_loss(heads(x), y).double() * len(x) for x, y in parts]).sum(dim=0)
    return (total / len(tokens)).nan_to_num(nan=torch.inf)


class BatchedAdamW:
    """AdamW (arXiv 1711.05101) with a learning rate and a weight decay of its own for every copy.

    The optimizer is torch's, over the copies' own slices of the weights. Biases, norms and other vectors do not decay.
    """

    def __init__(self, heads: ProbeHeads, settings: SweepSettings) -> None:
        groups: list[dict[str, Any]] = []
        for i, (rate, decay) in enumerate(settings.pairs):
            slices: dict[bool, list[Tensor]] = {True: [], False: []}
            for w in heads.parameters():
                w.grad = torch.zeros_like(w) if w.grad is None else w.grad
                part = torch.nn.Parameter(w.detach()[i])
                part.grad = w.grad[i]  # the same memory, which must therefore stay: zeros instead of None
                slices[w.ndim > 2].append(part)  # a matrix for every copy
            groups += [{"params": slices[True], "weight_decay": decay, "peak": rate}]
            groups += [{"params": slices[False], "weight_decay": 0.0, "peak": rate}]
        self.heads = heads
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def step(self, loss: Tensor, way: float) -> None:
        """One step against the loss of all heads, [s], ``way`` (0 to 1) along the cosine."""
        self.heads.zero_grad(set_to_none=False)
        loss.sum().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (0.5 + 0.5 * math.cos(math.pi * way))
        self.optimizer.step()
