"""A training whose loss or weights become NaN ends with a sentence, and leaves the last finite checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vwm.cli.main import main
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.nn.training_module import TrainingModule
from vwm.runs.checkpoints import read_checkpoint
from vwm.runs.run_folder import RunFolder
from vwm.train import acceleration

VAE = {
    "class_path": "vwm.tokenizers.module.TokenizerModule",
    "init_args": {
        "tokenizer": {
            "class_path": "vwm.tokenizers.causal_vae.CausalVAE",
            "init_args": {
                "image_size": [8, 8], "latent_channels": 4, "time_compression": 1, "patch_size": 2, "widths": [8, 8],
                "depths": [1, 1],
            },
        },
        "optimizer": {"name": "adamw", "lr": 1.0e12, "warmup": 0},
    },
}  # fmt: skip


def config(tmp_path: Path, model: dict[str, Any]) -> Path:
    with ShardWriter(tmp_path / "data" / "shard-000000.tar") as writer:
        frames = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        writer.write("a", Episode(frames))
    data = {"path": str(tmp_path / "data"), "clip_length": 4, "batch_size": 4, "workers": 0, "val_fraction": 0.0}
    whole = {
        "run": str(tmp_path / "run"),
        "trainer": {
            "accelerator": "cpu", "max_steps": 12, "log_every_n_steps": 1, "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"every": 1},
        "ema": {"decay": 0},
        "model": model,
        "data": {"class_path": "vwm.data.VideoDataModule", "init_args": {**data, "fields": ["frames"]}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path / "config.yaml"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, capsys, monkeypatch) -> None:
    """Also, the run leaves the precision of matrix products to ``allow_tf32``."""
    devices: list[torch.device] = []
    monkeypatch.setattr(acceleration, "allow_tf32", devices.append)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", str(config(tmp_path, VAE))])
    assert devices == [torch.device("cpu")] and torch.get_float32_matmul_precision() == "highest"
    printed = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in printed
    assert "Lower the learning rate" in printed
    kept = read_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)
    assert 1 <= kept["global_step"] < 12
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())


class Broken(TrainingModule):
    """Has the loss that the test sets, and one weight."""

    def __init__(self, loss: float = 0.0) -> None:
        super().__init__()
        self.value = torch.tensor(loss)
        self.network = torch.nn.Linear(1, 1)

    def forward(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.value, {"reconstruction": self.value, "kl": torch.ones(())}

    def networks(self) -> dict[str, torch.nn.Module]:
        return {"network": self.network}

    def sample(self, batch: Any) -> torch.Tensor:
        raise NotImplementedError


def test_the_error_names_the_terms_that_are_not_finite(monkeypatch) -> None:
    module = Broken(float("inf"))
    monkeypatch.setattr(TrainingModule, "global_step", 7)
    with pytest.raises(FloatingPointError, match="step 7: loss is inf, reconstruction is inf; the last checkpoint"):
        module.training_step(None, 0)


def test_weights_that_are_not_finite_are_not_saved(monkeypatch) -> None:
    module = Broken()
    monkeypatch.setattr(TrainingModule, "global_step", 7)
    module.on_save_checkpoint({})
    torch.nn.init.constant_(module.network.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="step 7: some weights are not finite any more, and are not saved"):
        module.on_save_checkpoint({})
