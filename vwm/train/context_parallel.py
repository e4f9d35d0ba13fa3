"""``vwm fit --context_parallel N``: N processes share each clip, for clips that are too long for one."""

from __future__ import annotations

import lightning as L

from vwm.data.datamodule import VideoDataModule
from vwm.nn.context_parallel import check_context_size, make_context_group
from vwm.nn.training_module import TrainingModule


def share_clips(trainer: L.Trainer, data: L.LightningDataModule, size: int) -> None:
    """Let every ``size`` consecutive processes of a training read the same clips, and divide their frames.

    Args:
        trainer: before it runs.
        data: its data.
        size: processes that share a clip.

    Raises:
        ValueError: the number of processes is no multiple of ``size``, or the data come from another class.
    """
    check_context_size(size, trainer.world_size)
    if size == 1:
        return
    if not isinstance(data, VideoDataModule):
        raise ValueError(f"--context_parallel divides clips of VideoDataModule, and data is a {type(data).__name__}")
    data.context_parallel = size
    trainer.callbacks.append(ContextParallel(size))


class ContextParallel(L.Callback):
    """Groups the processes of a training, and lets its module divide clips over each group.

    Args:
        size: processes that share a clip.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ValueError where the networks of the module need whole clips."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.share_clips(make_context_group(self.size))
