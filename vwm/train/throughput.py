"""How fast a run is: frames and optimizer steps a second, into the log and the progress bar."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs ``train/frames_per_second`` (of all ranks) and ``train/steps_per_second`` since the last time it did."""

    def __init__(self) -> None:
        self._since, self._steps, self._frames = 0.0, 0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log where the trainer logs."""
        some = batch.frames if batch.frames is not None else batch.latents
        self._frames += some.shape[0] * some.shape[1] * trainer.world_size
        self._steps += 1
        if not self._since or trainer.global_step % trainer.log_every_n_steps == 0:
            now = time.monotonic()
            if self._since:
                seconds = now - self._since
                pl_module.log("train/frames_per_second", self._frames / seconds)
                pl_module.log("train/steps_per_second", self._steps / seconds)
            self._since, self._steps, self._frames = now, 0, 0
