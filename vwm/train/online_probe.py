"""A probe during training: how well a linear map reads the state of the environment from the present features."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import Tensor

from vwm.core.blocks import uncompiled_blocks
from vwm.core.checks import check_positive
from vwm.nn.ranks import mean_over_ranks


@runtime_checkable
class HasProbeFeatures(Protocol):
    """A module whose features can be probed while it trains."""

    def probe_features(self, batch: Any) -> Tensor:
        """Return features of clips, float [b, c], without gradients."""
        ...


class OnlineProbe(L.Callback):
    """Logs how well ridge regression predicts the recorded state from the features of a running training.

    Every ``every`` steps, the features of the batch and the state at the last frame of its clips are added to running
    sums of their products, in which older ones count less, because the features change. At every validation, the
    regression is solved from the sums, and predicts the held-out clips: ``probe/r2`` is the mean R² of the numbers of
    the state that vary, ``probe/r2_N`` that of number N. Nothing of it reaches the training: no gradients, no weights
    of the module, no random numbers.

    Args:
        every: optimizer steps between updates.
        memory: updates after which a clip counts 1/e of a new one.
        strength: of the ridge penalty, in units of the mean variance of the features.

    Raises:
        ValueError: a value is not above 0.
    """

    def __init__(self, every: int = 10, memory: float = 50.0, strength: float = 1e-3) -> None:
        check_positive(every=every)
        if not (memory > 0 and strength > 0):
            raise ValueError(f"memory and strength must be above 0, got {memory:g} and {strength:g}")
        self.every = every
        self.memory = memory
        self.strength = strength
        self._products: Tensor | None = None
        """Of (1, features, state) with itself, float64 [1 + c + s, 1 + c + s]."""
        self._step = -1
        self._held_out: Tensor | None = None
        """Sums over held-out clips, float64 [4, s]: clips, states, squared states, squared errors."""
        self._weights: Tensor | None = None
        self._width = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Check that the module can be probed. Raises ValueError."""
        if not isinstance(pl_module, HasProbeFeatures):
            raise ValueError(
                f"trainer.callbacks: a {type(pl_module).__name__} has no features that an OnlineProbe reads: remove it"
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a batch at the interval."""
        step = trainer.global_step
        if step % self.every or step == self._step:
            return
        self._step = step
        features, state = self._read(pl_module, batch)
        row = torch.cat((torch.ones_like(features[:, :1]), features, state), dim=1)
        products = mean_over_ranks(row.T @ row / len(row)).cpu()
        kept = 0 if self._products is None else self._products * torch.exp(torch.tensor(-1 / self.memory)).double()
        self._products = kept + products

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Solve the regression."""
        self._held_out = None
        self._weights = None if self._products is None else solve_ridge(self._products, self._width, self.strength)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Predict held-out clips."""
        if self._weights is None:
            return
        features, state = (value.cpu() for value in self._read(pl_module, batch))
        predicted = torch.cat((torch.ones_like(features[:, :1]), features), dim=1) @ self._weights
        sums = torch.stack((torch.ones_like(state), state, state.square(), (predicted - state).square())).sum(dim=1)
        self._held_out = sums if self._held_out is None else self._held_out + sums

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log R²."""
        if self._held_out is None:
            return
        count, total, squares, errors = mean_over_ranks(self._held_out.to(pl_module.device)).cpu()
        variation = squares - total.square() / count
        varies = variation > 1e-6 * squares
        scores = 1 - errors / torch.where(varies, variation, 1)
        row = {f"probe/r2_{number}": float(scores[number]) for number in varies.nonzero()[:, 0].tolist()}
        if row:
            row["probe/r2"] = sum(row.values()) / len(row)
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **row}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """See ``Callback``: a resumed run goes on with the same sums."""
        return {"products": self._products, "step": self._step, "width": self._width}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``Callback``."""
        self._products, self._step, self._width = (state_dict[name] for name in ("products", "step", "width"))

    @torch.no_grad()
    def _read(self, module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Return features [b, c] and the state at the last frame [b, s], float64."""
        if batch.state is None:
            raise ValueError(
                "an OnlineProbe reads the recorded state, and these clips have none: name state in data.fields, and "
                "record with `vwm record --state`"
            )
        with uncompiled_blocks(module):
            features = module.probe_features(batch).double()
        self._width = features.shape[1]
        return features, batch.state[:, -1].to(features.device, torch.float64)


def solve_ridge(products: Tensor, width: int, strength: float) -> Tensor:
    """Solve ridge regression from sums of products.

    Args:
        products: float64 [1 + c + s, 1 + c + s], of (1, inputs, outputs) with itself, summed over samples.
        width: c.
        strength: of the penalty, in units of the mean variance of the inputs.

    Returns:
        float64 [1 + c, s], the intercept first.
    """
    mean = products[0, 1:] / products[0, 0]
    covariance = products[1:, 1:] / products[0, 0] - mean[:, None] * mean
    inputs = covariance[:width, :width]
    penalty = strength * inputs.diagonal().mean().clamp(min=1e-12) * torch.eye(width, dtype=products.dtype)
    slopes = torch.linalg.solve(inputs + penalty, covariance[:width, width:])
    return torch.cat(((mean[width:] - mean[:width] @ slopes)[None], slopes))
