"""The optimizer and its schedule, as one value in a config. The optimizers are timm's."""

from __future__ import annotations

import math
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
    """

    name: str = "adamw"
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 1e-4
    warmup: int = 1000
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_lr: float = 0.0

    def build(self, model: nn.Module, max_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimizer of a model's trainable weights, and its schedule by optimizer steps.

        Raises:
            ValueError: a schedule that must end, and no ``max_steps`` to end at.
        """
        if self.schedule != "constant" and max_steps <= 0:
            raise ValueError(f"schedule={self.schedule!r} ends at trainer.max_steps, which is not set")
        optimizer = create_optimizer_v2(
            model, opt=self.name, lr=self.lr, weight_decay=self.weight_decay, betas=tuple(self.betas)
        )
        return optimizer, LambdaLR(optimizer, lambda step: self._factor(step, max_steps))

    def _factor(self, step: int, max_steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, max_steps - self.warmup))
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1 - progress
        low = self.min_lr / self.lr
        return low + (1 - low) * fall
