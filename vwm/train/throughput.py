"""The speed of a training, as metrics: frames and optimizer steps per second."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs ``train/frames_per_second`` (of all ranks) and ``train/steps_per_second`` since it last logged."""

    def __init__(self) -> None:
        self._last_logged = 0.0
        self._steps = 0
        self._frames = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at the trainer's interval."""
        clips = batch.frames if batch.frames is not None else batch.latents
        self._frames += clips.shape[0] * clips.shape[1] * trainer.world_size
        self._steps += 1
        if not self._last_logged or trainer.global_step % trainer.log_every_n_steps == 0:
            now = time.monotonic()
            if self._last_logged:
                seconds = now - self._last_logged
                pl_module.log("train/frames_per_second", self._frames / seconds)
                pl_module.log("train/steps_per_second", self._steps / seconds)
            self._last_logged = now
            self._steps = 0
            self._frames = 0
