"""The optimizer and its schedule, as one value in a config. The optimizers are timm's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class OptimizerConfig:
    """What to optimize with.

    Attributes:
        name: any name that timm's ``create_optimizer_v2`` knows, ``adamw`` or ``muon`` for example (muon moves the
            matrices, AdamW the rest).
        lr: peak learning rate.
        betas: of Adam.
        weight_decay: not applied to biases, norms and other vectors.
        warmup: steps of linear warm-up.
        schedule: ``constant`` after the warm-up, ``cosine`` to ``min_lr``, or ``linear`` to ``min_lr``.
        min_lr: where the schedule ends, at the trainer's ``max_steps``.
        start_lr: where the warm-up begins.
        final_weight_decay: where a cosine from ``weight_decay`` ends, at ``max_steps``; None keeps it constant.
        stretch: the schedules are made for so many times ``max_steps``, and the run stops before their end (V-JEPA:
            1.25).
    """

    name: str = "adamw"
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 1e-4
    warmup: int = 1000
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_lr: float = 0.0
    start_lr: float = 0.0
    final_weight_decay: float | None = None
    stretch: float = 1.0

    def build(self, model: nn.Module, max_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of a model's trainable weights, and its schedule by optimizer steps.

        Raises:
            ValueError: a schedule that must end, and no ``max_steps`` to end at.
        """
        if (self.schedule != "constant" or self.final_weight_decay is not None) and max_steps <= 0:
            raise ValueError(
                f"schedule={self.schedule!r} and final_weight_decay={self.final_weight_decay} end at "
                "trainer.max_steps, which is not set"
            )
        if self.stretch < 1:
            raise ValueError(f"stretch={self.stretch} must be 1 or more: a schedule cannot end before the run")
        optimizer = create_optimizer_v2(
            model, opt=self.name, lr=self.lr, weight_decay=self.weight_decay, betas=tuple(self.betas)
        )
        end = self.stretch * max_steps
        if self.final_weight_decay is None:
            return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, end))
        return optimizer, LRAndWeightDecaySchedule(
            optimizer, lambda step: self.factor(step, end), self.final_weight_decay, end
        )

    def factor(self, step: int, end: float) -> float:
        """By what the peak learning rate is multiplied at a step; ``end`` is where the schedule ends."""
        if step < self.warmup:
            start = self.start_lr / self.lr
            return start + (1 - start) * (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, end - self.warmup))
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1 - progress
        low = self.min_lr / self.lr
        return low + (1 - low) * fall


class LRAndWeightDecaySchedule(LambdaLR):
    """A schedule of the learning rate that also moves the weight decay, along a cosine.

    Args:
        optimizer: its groups with a weight decay of 0 keep it.
        factor: of the learning rate, by step.
        final: weight decay at the end.
        end: the last step.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], final: float, end: float) -> None:
        self.first_decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        self.final, self.end = final, end
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        """See ``LambdaLR``."""
        super().step(epoch)
        rise = (1 - math.cos(math.pi * min(1.0, self.last_epoch / max(1.0, self.end)))) / 2
        for group, first in zip(self.optimizer.param_groups, self.first_decays, strict=True):
            if first:
                group["weight_decay"] = first + (self.final - first) * rise
