"""The Lightning hooks that all trained models share. A model's own module holds its loss and its samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import Tensor, nn

from vwm.core.frames import video_to_uint8
from vwm.core.tokenizer import VideoTokenizer
from vwm.nn.optimizer import OptimizerConfig


class TrainingModule(L.LightningModule, ABC):
    """A model in training: ``forward`` is the whole loss.

    Attributes:
        progress_bar: labels of the progress bar, and the names of their values: ``loss``, or a key of the logs.
        optimizer: learning rate and schedule; subclasses set it in their constructor.
        action_dropout: share of the actions that ``drop_actions`` hides.
        tokenizer: of a module that learns from latents.
    """

    progress_bar: ClassVar[Mapping[str, str]] = {"loss": "loss"}
    optimizer: OptimizerConfig
    action_dropout: float = 0.0
    tokenizer: VideoTokenizer

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch (a ``ClipBatch``), and what to log."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """Return what to keep an average of, to compile and to export."""

    @abstractmethod
    def sample(self, batch: Any) -> Tensor:
        """Show what the model makes of a batch: uint8 [b, t, H, W, 3]."""

    def merge(self) -> None:
        """Make ordinary networks of those that the training changed, such as by LoRA: what is exported; in place."""

    @torch.no_grad()
    def true_frames(self, batch: Any) -> Tensor:
        """Return a batch's frames, uint8 [b, t, H, W, 3]; of encoded shards without video, their decoded latents."""
        if batch.frames is not None:
            frames: Tensor = batch.frames
            return frames
        return video_to_uint8(self.tokenizer.decode(batch.latents))

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """Return what stays in evaluation mode while the rest trains."""
        return ()

    def validation_losses(self, batch: Any, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a held-out batch, and what to log; by default as in training."""
        return self(batch)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Lightning's hook."""
        loss, logs = self(batch)
        self.log_dict({"train/loss": loss, **{f"train/{k}": v for k, v in logs.items()}})
        values = {"loss": loss, **logs}
        for label, name in self.progress_bar.items():
            if name in values:
                self.log(label, values[name], prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Lightning's hook."""
        loss, logs = self.validation_losses(batch, index)
        values = {"val/loss": loss, **{f"val/{k}": v for k, v in logs.items()}}
        self.log_dict(values, sync_dist=True, batch_size=batch_size(batch))

    def configure_optimizers(self) -> Any:
        """Lightning's hook."""
        optimizer, schedule = self.optimizer.build(self, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except for the frozen networks."""
        super().train(mode)
        for network in self.frozen_networks():
            network.eval()
        return self

    def checks_values(self, data: Tensor) -> bool:
        """Whether to check every number of a batch: always on a CPU, elsewhere in the first step only.

        A check waits for an accelerator, and costs little compared with a CPU's step.
        """
        return data.device.type == "cpu" or self.global_step == 0

    def drop_actions(self, known: Tensor) -> Tensor:
        """Hide a share ``action_dropout`` of the actions in training: bool [...], True where an action is shown."""
        if not self.action_dropout or not self.training:
            return known
        return known & (torch.rand(known.shape, device=self.device) >= self.action_dropout)

    @contextmanager
    def fixed_randomness(self, seed: int) -> Iterator[None]:
        """Draw torch's random numbers from a seed inside the block, and go on as before after it."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def batch_size(batch: Any) -> int:
    """Return the number of clips in a batch: of its latents, or else of its frames or actions."""
    values = (getattr(batch, name) for name in ("latents", "frames", "actions"))
    return len(next(value for value in values if value is not None))


def shuffle_actions(batch: Any) -> Any:
    """Return a batch (a dataclass) in which each clip has the actions of the one before it."""
    return type(batch)(**{**vars(batch), "actions": batch.actions.roll(1, dims=0)})
