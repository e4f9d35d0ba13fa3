"""An exponential moving average of the weights, used to validate, sample and export."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vwm.nn.sharding import from_local_part, local_part, shard_like, whole_tensor


class EMACallback(L.Callback):
    """Keeps an average of the weights while they train, and saves it in the checkpoint.

    Where weights are sharded, every process averages its part of them; checkpoints hold whole averages.

    Args:
        decay: decay of the average late in training; 0 disables it. After n updates it is at most (1 + n) / (10 + n),
            and the first update copies the weights.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.gathers_state = True
        self._weights: list[nn.Parameter] = []
        self._averages: list[Tensor] = []  # this process's parts; empty before training and without averaging
        self._stored_weights: list[Tensor] = []
        self._updates = 0
        self._loaded_state: dict[str, Any] | None = None
        self._step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the average, or continue the checkpoint's."""
        if not self.decay:
            return
        self._weights = _network_parameters(pl_module)
        averages = [local_part(weight).detach().clone() for weight in self._weights]
        if self._loaded_state is not None:
            whole = zip(self._loaded_state["shadow_params"], self._weights, strict=True)
            averages = [local_part(shard_like(average, weight)).clone() for average, weight in whole]
            self._updates = self._loaded_state["optimization_step"]
            self._loaded_state = None
        self._averages = [average.to(pl_module.device) for average in averages]
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after every optimizer step."""
        if self._averages and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._update()

    def _update(self) -> None:
        """Average the weights that train; copy the others, such as target encoders, which are averages themselves."""
        warmup = (1 + self._updates) / (10 + self._updates) if self._updates else 0
        decay = min(self.decay, warmup)
        self._updates += 1
        pairs = list(zip(self._averages, self._weights, strict=True))
        trained = [(average, local_part(weight).detach()) for average, weight in pairs if weight.requires_grad]
        if trained:
            averages, weights = zip(*trained, strict=True)
            get_ema_multi_avg_fn(decay)(averages, weights, self._updates)
        for average, weight in pairs:
            if not weight.requires_grad:
                average.copy_(local_part(weight).detach())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the average for validation."""
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue with the weights in training."""
        self.swap_out(pl_module)

    @torch.no_grad()
    def swap_in(self, pl_module: L.LightningModule) -> None:
        """Put the average into the networks, and store their weights."""
        if self._averages:
            parts = [local_part(weight) for weight in self._weights]
            self._stored_weights = [part.clone() for part in parts]
            torch._foreach_copy_(parts, self._averages)

    @torch.no_grad()
    def swap_out(self, pl_module: L.LightningModule) -> None:
        """Put the stored weights back."""
        if self._stored_weights:
            torch._foreach_copy_([local_part(weight) for weight in self._weights], self._stored_weights)
            self._stored_weights = []

    def state_dict(self) -> dict[str, Any]:
        """Return the average for the checkpoint, in all processes; sharded unless ``gathers_state``."""
        if not self._averages:
            return {}
        parts = zip(self._averages, self._weights, strict=True)
        averages = [from_local_part(part, weight) for part, weight in parts]
        if self.gathers_state:
            pairs = zip(averages, self._weights, strict=True)
            averages = [whole_tensor(average, weight).cpu() for average, weight in pairs]
        return {"average": {"optimization_step": self._updates, "shadow_params": averages}}

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
