"""Configuration of the optimizer and its learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vwm.core.checks import check_not_negative
from vwm.nn.fused_adam import fuse_adam_on_cuda, update_local_parts
from vwm.nn.layer_decay import layer_decay_groups
from vwm.nn.muon import Muon


@dataclass
class OptimizerConfig:
    """Optimizer and schedules of learning rate and weight decay.

    Attributes:
        name: ``muon`` (Muon for matrices, AdamW for all other weights; see ``Muon``), ``nmuon`` (the same with Nesterov
            momentum), or another optimizer of timm's ``create_optimizer_v2``, such as ``adamw``.
        lr: peak learning rate.
        betas: coefficients of Adam's running averages.
        weight_decay: not applied to biases, norms and other vectors.
        warmup: steps of linear warm-up.
        schedule: ``constant`` after the warm-up, ``cosine`` to ``min_lr``, or ``linear`` to ``min_lr``.
        min_lr: learning rate at the end of the schedule: the trainer's ``max_steps`` or ``max_time``, whichever comes
            first.
        start_lr: learning rate at the start of the warm-up.
        final_weight_decay: end of a cosine schedule of the weight decay, at ``max_steps``; None keeps it constant.
        stretch: length of the schedules as a multiple of ``max_steps``; above 1, the run stops before their end
            (V-JEPA: 1.25).
        layer_decay: learning rate of a layer divided by that of the next one, for the fine-tuning of models that order
            their weights in layers; see ``layer_decay_groups``.

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
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr must be above 0, got {self.lr}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        check_not_negative(
            weight_decay=self.weight_decay, warmup=self.warmup, min_lr=self.min_lr, start_lr=self.start_lr
        )

    def build(
        self, model: nn.Module, max_steps: int, time_share: Callable[[], float] | None = None
    ) -> tuple[Optimizer, LambdaLR]:
        """Build the optimizer of the trainable weights of a model, and its schedule over optimizer steps.

        Args:
            model: the model.
            max_steps: length of the run; 0 or less where only its time is limited.
            time_share: returns the share of the run's time limit that has passed, where it has one: the schedule then
                follows whichever of steps and time is further, so that it ends even where the time does not suffice
                for all steps.

        Raises:
            ValueError: the schedule has no end, because neither steps nor time are limited, or ``stretch`` is below 1.
        """
        needs_end = self.schedule != "constant" or self.final_weight_decay is not None
        if needs_end and max_steps <= 0 and time_share is None:
            raise ValueError(
                f"schedule={self.schedule!r} and final_weight_decay={self.final_weight_decay} end at "
                "trainer.max_steps or trainer.max_time, and neither is set"
            )
        if self.stretch < 1:
            raise ValueError(f"stretch={self.stretch} must be 1 or more: a schedule cannot end before the run")
        optimizer = self._make_optimizer(model)
        fuse_adam_on_cuda(optimizer)
        update_local_parts(optimizer)
        end = self.stretch * max_steps

        def share_of_time() -> float:
            return time_share() / self.stretch if time_share is not None else 0.0

        def factor(step: int) -> float:
            return self.factor(step, end, share_of_time())

        if self.final_weight_decay is None:
            return optimizer, LambdaLR(optimizer, factor)

        def progress(step: int) -> float:
            return max(step / max(1.0, end) if end > 0 else 0.0, share_of_time())

        return optimizer, LRAndWeightDecaySchedule(optimizer, factor, self.final_weight_decay, progress)

    def _make_optimizer(self, model: nn.Module) -> Optimizer:
        settings: dict[str, Any] = {"lr": self.lr, "betas": tuple(self.betas)}
        layers = (
            None if self.layer_decay == 1 else layer_decay_groups(model, self.lr, self.weight_decay, self.layer_decay)
        )
        if self.name in ("muon", "nmuon"):
            groups = layers or param_groups_weight_decay(model, self.weight_decay)
            return Muon(groups, nesterov=self.name == "nmuon", **settings)
        return create_optimizer_v2(layers or model, opt=self.name, weight_decay=self.weight_decay, **settings)

    def factor(self, step: int, end: float, time_share: float = 0.0) -> float:
        """Multiplier of the peak learning rate.

        Args:
            step: the optimizer step.
            end: the last step of the schedule; 0 or less where only time ends it.
            time_share: share of the schedule's time that has passed.
        """
        if step < self.warmup:
            start = self.start_lr / self.lr
            return start + (1 - start) * (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        by_steps = (step - self.warmup) / max(1, end - self.warmup) if end > 0 else 0.0
        progress = min(1.0, max(by_steps, time_share))
        remaining = (1 + math.cos(math.pi * progress)) / 2 if self.schedule == "cosine" else 1 - progress
        low = self.min_lr / self.lr
        return low + (1 - low) * remaining


class LRAndWeightDecaySchedule(LambdaLR):
    """A learning rate schedule that also changes the weight decay, along a cosine.

    Args:
        optimizer: the optimizer; parameter groups with a weight decay of 0 keep it.
        factor: multiplier of the learning rate at each step.
        final: weight decay at the end.
        progress: share of the schedule that has passed at each step; 1 or more at the end.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Callable[[int], float], final: float, progress: Callable[[int], float]
    ) -> None:
        self.first_decays = [float(group["weight_decay"]) for group in optimizer.param_groups]
        self.final = final
        self.progress = progress
        super().__init__(optimizer, factor)

    def state_dict(self) -> dict[str, Any]:
        """See ``LambdaLR``; without the function, which belongs to the run."""
        return {key: value for key, value in super().state_dict().items() if key != "progress"}

    def step(self, epoch: int | None = None) -> None:
        """See ``LambdaLR``."""
        super().step(epoch)
        progress = (1 - math.cos(math.pi * min(1.0, self.progress(self.last_epoch)))) / 2
        for group, first in zip(self.optimizer.param_groups, self.first_decays, strict=True):
            if first:
                group["weight_decay"] = first + (self.final - first) * progress
