"""An exponential moving average of the weights (diffusers' EMAModel), used to validate, sample and export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


class EMACallback(L.Callback):
    """Keeps an average of the weights while they train, and saves it in the checkpoint.

    Args:
        decay: decay of the average late in training; 0 disables it. Early in training the decay is
            min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self._average: EMAModel | None = None
        self._loaded_state: dict[str, Any] | None = None
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the average, or continue the checkpoint's."""
        if not self.decay:
            return
        from diffusers.training_utils import EMAModel  # here, after diffusers was imported as ``network_base`` does

        self._average = EMAModel(_network_parameters(pl_module), decay=self.decay)
        if self._loaded_state is not None:
            self._average.load_state_dict(self._loaded_state)
            self._loaded_state = None
        self._average.to(pl_module.device)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after every optimizer step."""
        if self._average is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._average.step(_network_parameters(pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the average for validation."""
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue with the weights in training."""
        self.swap_out(pl_module)

    def swap_in(self, pl_module: L.LightningModule) -> None:
        """Put the average into the networks, and store their weights."""
        if self._average is not None:
            self._average.store(_network_parameters(pl_module))
            self._average.copy_to(_network_parameters(pl_module))

    def swap_out(self, pl_module: L.LightningModule) -> None:
        """Put the stored weights back."""
        if self._average is not None:
            self._average.restore(_network_parameters(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return the average for the checkpoint."""
        return {} if self._average is None else {"average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the checkpoint's average until training starts."""
        self._loaded_state = state.get("average")


def _network_parameters(module: L.LightningModule) -> list[nn.Parameter]:
    return [p for network in module.networks().values() for p in network.parameters()]


def load_ema_weights(module: L.LightningModule, checkpoint: dict[str, Any]) -> bool:
    """Copy a checkpoint's average into the module's networks; False where it holds none."""
    state = checkpoint.get("callbacks", {}).get("EMACallback", {}).get("average")
    if state is None:
        return False
    with torch.no_grad():
        for parameter, average in zip(_network_parameters(module), state["shadow_params"], strict=True):
            parameter.copy_(average)
    return True
