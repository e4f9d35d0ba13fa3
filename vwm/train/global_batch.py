"""``vwm fit --global_batch N``: the same global batches on any number of ranks."""

from __future__ import annotations

from typing import Any

import lightning as L

from vwm.data.batch_division import BatchDivision
from vwm.data.datamodule import ClipLoader, VideoDataModule
from vwm.nn.micro_batch import MicroBatch
from vwm.nn.training_module import TrainingModule

COUNTED_IN_BATCHES = ("val_check_interval", "limit_train_batches")
"""Settings of the trainer that Lightning counts in micro-batches, where they are whole numbers."""
PROGRESS = ("ready", "started", "processed", "completed")


def divide_global_batch(trainer: L.Trainer, data: L.LightningDataModule, global_batch: int | None) -> None:
    """Divide every global batch of a training over its ranks, with accumulation where it does not fit on them.

    ``trainer.val_check_interval`` and ``trainer.limit_train_batches`` count global batches then.

    Args:
        trainer: before it runs.
        data: its data; ``batch_size`` is the most clips that a rank computes at once.
        global_batch: clips of a step, of all ranks together; None leaves ``batch_size`` clips for every rank.

    Raises:
        ValueError: the trainer accumulates by itself, or the data come from another class.
    """
    if global_batch is None:
        trainer.callbacks.insert(0, GlobalBatch(None))
        return
    if not isinstance(data, VideoDataModule):
        raise ValueError(f"--global_batch divides the clips of VideoDataModule, and data is a {type(data).__name__}")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"--global_batch {global_batch} and trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: "
            "leave out the second, which follows from the first, data.batch_size and the number of ranks"
        )
    division = BatchDivision(global_batch, trainer.world_size // data.processes_per_clip, data.batch_size)
    data.global_batch = global_batch
    trainer.accumulate_grad_batches = division.accumulation
    for name in COUNTED_IN_BATCHES:
        if isinstance(getattr(trainer, name), int):
            setattr(trainer, name, getattr(trainer, name) * division.accumulation)
    trainer.callbacks.insert(0, GlobalBatch(division))


class GlobalBatch(L.Callback):
    """Tells the module which part of the global batch it computes, and continues runs of other numbers of ranks.

    Args:
        division: of this training; None where every batch of a rank is a step.
    """

    def __init__(self, division: BatchDivision | None) -> None:
        self.division = division

    @property
    def accumulation(self) -> int:
        """Batches of the loader that make one of its global batches."""
        return 1 if self.division is None else self.division.accumulation

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Describe the micro-batch."""
        if self.division is None:
            return
        assert isinstance(pl_module, TrainingModule)
        pl_module.micro_batch = _describe(self.division, pl_module.clip_rank, batch_idx)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the clips of a validation batch."""
        if self.division is None:
            return
        loader = trainer.val_dataloaders
        assert isinstance(loader, ClipLoader) and isinstance(pl_module, TrainingModule)
        pl_module.micro_batch = _describe(loader.division, pl_module.clip_rank, batch_idx)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save in how many micro-batches Lightning counted."""
        checkpoint["accumulation"] = self.accumulation

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert Lightning's counters of batches to the micro-batches of this training."""
        before = checkpoint.get("accumulation", 1)
        counters = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("total", "current"):
            counters[part] = convert_progress(counters[part], before, self.accumulation)


def _describe(division: BatchDivision, rank: int, index: int) -> MicroBatch:
    part = index % division.accumulation
    return MicroBatch(
        clips=len(division.clips(rank, part)),
        weight=division.weight(rank, part),
        share=1 / division.accumulation,
        first=part == 0,
        position=division.computed_clips(rank, part).start,
    )


def convert_progress(counts: dict[str, int], before: int, now: int) -> dict[str, int]:
    """Convert numbers of micro-batches after a whole number of steps.

    The last micro-batch of a step may not be counted as completed yet, by which Lightning knows where it stopped.

    Args:
        counts: of batches that were ready, started, processed and completed.
        before, now: micro-batches of a step.
    """
    missing = {name: counts["ready"] - counts[name] for name in PROGRESS if name in counts}
    ready = counts["ready"] // before * now
    return {**counts, **{name: ready - lag for name, lag in missing.items()}}
