"""An exponential moving average of the weights (diffusers' EMAModel), used to validate, sample and export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from vwm.nn.sharding import from_local_part, local_part, shard_like, whole_tensor

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


class EMACallback(L.Callback):
    """Keeps an average of the weights while they train, and saves it in the checkpoint.

    Where weights are sharded, every process averages its part of them; checkpoints hold whole averages.

    Args:
        decay: decay of the average late in training; 0 disables it. Early in training the decay is
            min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.gathers_state = True
        self._average: EMAModel | None = None
        self._weights: list[nn.Parameter] = []
        self._loaded_state: dict[str, Any] | None = None
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the average, or continue the checkpoint's."""
        if not self.decay:
            return
        from diffusers.training_utils import EMAModel  # here, after diffusers was imported as ``network_base`` does

        self._weights = _network_parameters(pl_module)
        self._average = EMAModel(self._parts(), decay=self.decay)
        if self._loaded_state is not None:
            self._average.load_state_dict(self._loaded_state)
            whole = zip(self._average.shadow_params, self._weights, strict=True)
            self._average.shadow_params = [local_part(shard_like(average, weight)) for average, weight in whole]
            self._loaded_state = None
        self._average.to(pl_module.device)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after every optimizer step."""
        if self._average is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._average.step(self._parts())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the average for validation."""
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue with the weights in training."""
        self.swap_out(pl_module)

    def swap_in(self, pl_module: L.LightningModule) -> None:
        """Put the average into the networks, and store their weights."""
        if self._average is not None:
            self._average.store(self._parts())
            self._average.copy_to(self._parts())

    def swap_out(self, pl_module: L.LightningModule) -> None:
        """Put the stored weights back."""
        if self._average is not None:
            self._average.restore(self._parts())

    def state_dict(self) -> dict[str, Any]:
        """Return the average for the checkpoint, in all processes; sharded unless ``gathers_state``."""
        if self._average is None:
            return {}
        parts = zip(self._average.shadow_params, self._weights, strict=True)
        averages = [from_local_part(part, weight) for part, weight in parts]
        if self.gathers_state:
            averages = [whole_tensor(average).cpu() for average in averages]
        return {"average": self._average.state_dict() | {"shadow_params": averages}}

    def _parts(self) -> list[Tensor]:
        """This process's parts of all weights, which share their memory."""
        return [local_part(weight).detach().requires_grad_(weight.requires_grad) for weight in self._weights]

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
