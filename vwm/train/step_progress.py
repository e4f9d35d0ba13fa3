"""The progress bar of ``vwm fit``."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from vwm.core.command_output import progress_bar


class StepProgressBar(ProgressBar):
    """Shows the optimizer steps of the whole run and the time left; Lightning's own bars count those of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Show nothing: on ranks other than the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if self._enabled:
            steps = trainer.estimated_stepping_batches
            total = None if steps == float("inf") else int(steps)
            self._bar = progress_bar(desc="train", unit="step", total=total, initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step and the values that the module shows."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            values = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
            self._bar.set_postfix(values, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that validation takes the time."""
        self._describe("validate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that training goes on."""
        self._describe("train")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar, also after an error or a signal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _describe(self, activity: str) -> None:
        if self._bar is not None:
            self._bar.set_description(activity, refresh=sys.stderr.isatty())
