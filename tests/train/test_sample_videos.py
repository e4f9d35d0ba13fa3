"""Sample videos: truth and prediction side by side, also for shards that contain only latents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import Precision
from PIL import Image

from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.nn.training_module import TrainingModule
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.train.sample_videos import SampleVideos

FRAMES = torch.arange(0, 240, 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)[None, :4].contiguous()


class WhiteModule(TrainingModule):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = PixelTokenizer((8, 8), patch_size=2)

    def forward(self, batch: ClipBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.zeros(()), {}

    def networks(self) -> dict[str, torch.nn.Module]:
        return {}

    def sample(self, batch: ClipBatch) -> torch.Tensor:
        """Return white frames, which differ from every true frame."""
        return torch.full_like(FRAMES, 255)


def make_trainer(folder: Path, step: int) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_step=step,
        is_global_zero=True,
        callbacks=[],
        datamodule=None,
        strategy=strategy,
        precision_plugin=Precision(),
        default_root_dir=str(folder),
    )


@pytest.mark.parametrize("field_names", [("frames",), ("frames", "latents"), ("latents",)])
def test_sheets_show_truth_and_prediction_with_and_without_video(tmp_path, field_names):
    module = WhiteModule()
    fields = {"frames": FRAMES, "latents": module.tokenizer.encode(frames_to_float(FRAMES))}
    SampleVideos(every=2).on_train_batch_end(
        make_trainer(tmp_path, 2), module, None, ClipBatch(**{name: fields[name] for name in field_names}), 0
    )
    assert {p.name for p in (tmp_path / "videos").iterdir()} == {"step-0000002.mp4", "step-0000002.png"}
    sheet = np.asarray(Image.open(tmp_path / "videos" / "step-0000002.png"))
    assert np.array_equal(sheet[:8], np.concatenate(list(FRAMES[0].numpy()), axis=1))
    assert (sheet[8:] == 255).all()


def test_videos_are_written_only_at_sample_steps(tmp_path):
    for step, every in ((3, 2), (2, 0)):
        SampleVideos(every=every).on_train_batch_end(
            make_trainer(tmp_path, step), WhiteModule(), None, ClipBatch(frames=FRAMES), 0
        )
    assert not list(tmp_path.iterdir())
