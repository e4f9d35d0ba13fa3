"""Sample videos while training: context and prediction next to the true frames."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vwm.core.atomic_files import atomic_write
from vwm.core.blocks import uncompiled_blocks
from vwm.data.clips import ClipBatch
from vwm.data.video_encoding import write_video
from vwm.train.ema import EMACallback


class SampleVideos(L.Callback):
    """Writes ``videos/step-N.mp4`` (left the true frames, right the model) and a PNG sheet of the same clips.

    The clips are held-out ones, the same each time; training clips where nothing is held out. Encoded shards without
    video show the truth as the tokenizer decodes it.

    Args:
        every: optimizer steps between samples; 0 writes none.
        clips: number of clips that a video shows.
    """

    def __init__(self, every: int = 500, clips: int = 4) -> None:
        self.every = every
        self.num_clips = clips
        self._step = -1
        self._batch: ClipBatch | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Sample at the interval."""
        step = trainer.global_step
        takes_part = trainer.is_global_zero or pl_module.mesh is not None  # sharded weights are gathered in all ranks
        if not self.every or step % self.every or step == self._step or not takes_part:
            return
        self._step = step
        averages = [c for c in trainer.callbacks if isinstance(c, EMACallback)]
        clips = self._select_clips(trainer, batch)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # sampling must not advance the training's generators
            torch.manual_seed(0)
            for average in averages:
                average.swap_in(pl_module)
            pl_module.eval()
            with uncompiled_blocks(pl_module), trainer.precision_plugin.tensor_init_context():
                predicted, truth = pl_module.sample(clips), pl_module.true_frames(clips)
            pl_module.train()
            for average in averages:
                average.swap_out(pl_module)
        if not trainer.is_global_zero:
            return
        stem = Path(trainer.default_root_dir) / "videos" / f"step-{step:07d}"
        _write_samples(stem, truth.cpu().numpy(), predicted.cpu().numpy())

    def _select_clips(self, trainer: L.Trainer, batch: ClipBatch) -> ClipBatch:
        if self._batch is None:
            loader = trainer.datamodule.val_dataloader() if trainer.datamodule is not None else []
            chosen = next(iter(loader)) if len(loader) else batch
            values = {f.name: getattr(chosen, f.name) for f in fields(ClipBatch)}  # a module may have added fields
            self._batch = ClipBatch(**{k: v[: self.num_clips] for k, v in values.items() if v is not None})
        moved = {k: v.to(trainer.strategy.root_device) for k, v in vars(self._batch).items() if v is not None}
        return ClipBatch(**moved)


def _write_samples(stem: Path, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate((truth, predicted), axis=3)  # side by side: [b, t, h, 2w, 3]
    write_video(stem.with_suffix(".mp4"), np.concatenate(list(rows), axis=1), fps=8)
    sheet = np.concatenate(
        [np.concatenate(list(clip), axis=1) for pair in zip(truth, predicted, strict=True) for clip in pair]
    )
    with atomic_write(stem.with_suffix(".png")) as file:
        Image.fromarray(sheet).save(file, "PNG")
