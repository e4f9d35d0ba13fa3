"""Configuration of the optimizer (one of timm's) and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vwm.core.checks import check_not_negative


@dataclass
class OptimizerConfig:
    """Optimizer and schedules of learning rate and weight decay.

    Attributes:
        name: an optimizer of timm's ``create_optimizer_v2``, such as ``adamw`` or ``muon`` (Muon for matrices, AdamW
            for all other weights).
        lr: peak learning rate.
        betas: coefficients of Adam's running averages.
        weight_decay: not applied to biases, norms and other vectors.
        warmup: steps of linear warm-up.
        schedule: ``constant`` after the warm-up, ``cosine`` to ``min_lr``, or ``linear`` to ``min_lr``.
        min_lr: learning rate at the end of the schedule, the trainer's ``max_steps``.
        start_lr: learning rate at the start of the warm-up.
        final_weight_decay: end of a cosine schedule of the weight decay, at ``max_steps``; None keeps it constant.
        stretch: length of the schedules as a multiple of ``max_steps``; above 1, the run stops before their end
            (V-JEPA: 1.25).

    Raises:
        ValueError: a rate or a count is out of range.
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

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr must be above 0, got {self.lr}")
        check_not_negative(
            weight_decay=self.weight_decay, warmup=self.warmup, min_lr=self.min_lr, start_lr=self.start_lr
        )

    def build(self, model: nn.Module, max_steps: int) -> tuple[Optimizer, LambdaLR]:
        """Build the optimizer of the trainable weights of a model, and its schedule over optimizer steps.

        Raises:
            ValueError: the schedule needs ``max_steps``, which is not positive, or ``stretch`` is below 1.
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
            optimizer, lambda step: self.factor(step, end), final=self.final_weight_decay, end=end
        )

    def factor(self, step: int, end: float) -> float:
        """Multiplier of the peak learning rate at a step. ``end`` is the last step of the schedule."""
        if step < self.warmup:
            start = self.start_lr / self.lr
            return start + (1 - start) * (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, end - self.warmup))
        remaining = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1 - progress
        low = self.min_lr / self.lr
        return low + (1 - low) * remaining


class LRAndWeightDecaySchedule(LambdaLR):
    """A learning rate schedule that also changes the weight decay, along a cosine.

    Args:
        optimizer: the optimizer; parameter groups with a weight decay of 0 keep it.
        factor: multiplier of the learning rate at each step.
        final: weight decay at the end.
        end: the last step.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], final: float, end: float) -> None:
        self.first_decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        self.final = final
        self.end = end
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        """See ``LambdaLR``."""
        super().step(epoch)
        progress = (1 - math.cos(math.pi * min(1.0, self.last_epoch / max(1.0, self.end)))) / 2
        for group, first in zip(self.optimizer.param_groups, self.first_decays, strict=True):
            if first:
                group["weight_decay"] = first + (self.final - first) * progress
