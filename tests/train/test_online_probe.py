"""A probe during training: it reads what the features hold, and leaves the training as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from vwm.data.clips import ClipBatch
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MultiBlockMaskSampler
from vwm.models.vjepa.module import VJEPAModule
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig
from vwm.train.online_probe import OnlineProbe, solve_ridge

SIZES = {"image_size": (16, 16), "frames": 2, "tubelet": 2, "patch_size": 8, "heads": 2, "depth": 1}


def clips(seed: int, fields: tuple[str, ...] = ("state",)) -> ClipBatch:
    """Clips whose brightness is the first number of the state; the second one never varies."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(64, generator=generator)
    noise = torch.rand(64, 2, 16, 16, 3, generator=generator)
    frames = ((0.7 * level[:, None, None, None, None] + 0.3 * noise) * 255).to(torch.uint8)
    state = torch.stack((100 * level, torch.full((64,), 7.0)), dim=1)[:, None].expand(-1, 2, -1)
    return ClipBatch(frames=frames, seed=torch.arange(64) + 100 * seed, state=state if "state" in fields else None)


def batches(seeds: Iterable[int], fields: tuple[str, ...]) -> DataLoader[Any]:
    return DataLoader([clips(seed, fields) for seed in seeds], batch_size=None, collate_fn=lambda batch: batch)


class Rows(CSVLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__("unused")
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((int(step or 0), dict(metrics)))

    def save(self) -> None:
        """Write nothing."""


def train(folder, probe: OnlineProbe | None, **settings: Any) -> tuple[VJEPAModule, Rows]:
    torch.manual_seed(0)
    module = VJEPAModule(
        VideoEncoder(width=16, **SIZES),
        MaskedPredictor(encoder_width=16, width=16, **SIZES),
        [MultiBlockMaskSampler(1, (0.5, 0.5))],
        OptimizerConfig(lr=1e-3),
        monitor=None,
    )
    logger = Rows()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=8,
        log_every_n_steps=1,
        val_check_interval=4,
        callbacks=[] if probe is None else [probe],
        logger=logger,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    fields = settings.get("fields", ("state",))
    trainer.fit(module, *(batches(seeds, fields) for seeds in (range(8), (50, 51))))
    return module, logger


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_the_probe_reads_the_state_and_the_training_is_the_same_without_it(tmp_path):
    probe = OnlineProbe(every=1)
    probed, logger = train(tmp_path, probe)
    plain, _ = train(tmp_path, None)
    for (name, one), other in zip(probed.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    scores = [(step, row) for step, row in logger.rows if "probe/r2" in row]
    assert [step for step, _ in scores] == [4, 8]
    assert scores[-1][1]["probe/r2"] > 0.8 and "probe/r2_1" not in scores[-1][1]  # a constant has no R²
    assert scores[-1][1]["probe/r2"] == scores[-1][1]["probe/r2_0"]
    resumed = OnlineProbe(every=1)
    resumed.load_state_dict(probe.state_dict())
    assert torch.equal(resumed._products, probe._products) and resumed._width == 64


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_clips_without_a_state_and_modules_without_features_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"these clips have none: name state in data\.fields"):
        train(tmp_path, OnlineProbe(every=1), fields=())
    with pytest.raises(ValueError, match="a Linear has no features that an OnlineProbe reads"):
        OnlineProbe().setup(None, nn.Linear(1, 1), "fit")
    with pytest.raises(ValueError, match="every"):
        OnlineProbe(every=0)


def test_ridge_from_sums_is_ridge_from_samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64, generator=generator) + 5
    y = x @ torch.randn(3, 2, dtype=torch.float64, generator=generator) + 9
    row = torch.cat((torch.ones(50, 1, dtype=torch.float64), x, y), dim=1)
    found = solve_ridge(row.T @ row, 3, 0.1)
    centered = x - x.mean(0)
    penalty = 0.1 * centered.square().mean() * torch.eye(3, dtype=torch.float64)
    slopes = torch.linalg.solve(centered.T @ centered / 50 + penalty, centered.T @ (y - y.mean(0)) / 50)
    torch.testing.assert_close(found[1:], slopes)
    torch.testing.assert_close(found[0], y.mean(0) - x.mean(0) @ slopes)
