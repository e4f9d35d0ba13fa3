"""``vwm fit --context_parallel N`` and ``--tensor_parallel N``: processes that work on the same clips together.

With the first, each of them computes some frames, for clips that are too long for one; with the second, some heads and
hidden units of every layer, for layers that are too large or too slow for one.
"""

from __future__ import annotations

import lightning as L

from vwm.data.datamodule import VideoDataModule
from vwm.nn.context_parallel import check_group_size, make_context_group
from vwm.nn.training_module import TrainingModule


def share_clips(trainer: L.Trainer, data: L.LightningDataModule, context: int, tensor: int = 1) -> None:
    """Let every ``context * tensor`` consecutive processes of a training read the same clips.

    Args:
        trainer: before it runs.
        data: its data.
        context: processes that divide the frames of a clip.
        tensor: processes that compute each layer together; the strategy divides the weights.

    Raises:
        ValueError: the number of processes is no multiple of both, or the data come from another class.
    """
    check_group_size(context, trainer.world_size)
    check_group_size(tensor, trainer.world_size, "tensor_parallel")
    check_group_size(context * tensor, trainer.world_size, "context_parallel * tensor_parallel")
    if context * tensor == 1:
        return
    if not isinstance(data, VideoDataModule):
        name = "context_parallel" if context > 1 else "tensor_parallel"
        raise ValueError(f"--{name} shares clips of VideoDataModule, and data is a {type(data).__name__}")
    data.processes_per_clip = context * tensor
    if context > 1:
        trainer.callbacks.append(ContextParallel(context, tensor))


class ContextParallel(L.Callback):
    """Groups the processes of a training, and lets its module divide clips over each group.

    Args:
        size: processes that share a clip.
        members: processes in the place of each of them, which work on the same frames.
    """

    def __init__(self, size: int, members: int = 1) -> None:
        self.size = size
        self.members = members

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ValueError where the networks of the module need whole clips."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.share_clips(make_context_group(self.size, self.members))
