"""Callbacks of the trainings of ``tools/elastic_run``: what a rank computes, and how far it may go."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L

from vwm.train import ResumableCheckpoints


class RecordParts(L.Callback):
    """Append a line for every micro-batch to ``parts/PROCESS.jsonl`` of the run: step, place, hashes, ranks, time."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        division, rank = trainer.train_dataloader.division, trainer.global_rank
        part = division.clips(rank, batch_idx % division.accumulation)
        clips = [hashlib.sha256(clip.numpy().tobytes()).hexdigest()[:16] for clip in batch.frames.cpu()][: len(part)]
        step = trainer.global_step + trainer.fit_loop._should_accumulate()
        folder = Path(trainer.default_root_dir) / "parts"
        folder.mkdir(exist_ok=True)
        line = [step, part.start, clips, rank, trainer.world_size, os.getpid(), time.time()]
        with (folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class WaitAtLimit(L.Callback):
    """Wait before a step until the file ``limit`` of the run names a later one, or the run has to stop."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        limit = Path(trainer.default_root_dir) / "limit"
        checkpoints = next(c for c in trainer.callbacks if isinstance(c, ResumableCheckpoints))
        while limit.is_file() and trainer.global_step >= int(limit.read_text() or 0) and not checkpoints.is_stopping:
            time.sleep(0.05)
