"""Supervised fine-tuning: what is learned from which labels, the learning rates by layer, and exact resume."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from vwm.core.components import save_component
from vwm.data.clips import ClipBatch
from vwm.data.datamodule import VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.family import VJEPAFamily
from vwm.models.vjepa.state_targets import read_state_targets
from vwm.models.vjepa.supervised_module import SupervisedVJEPAModule
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.optimizer import OptimizerConfig

SIZES = {"image_size": (16, 16), "frames": 2, "tubelet": 2, "patch_size": 8, "width": 16, "heads": 2, "depth": 2}
pytestmark = pytest.mark.filterwarnings(  # Lightning's own use of torch, and its advice
    "ignore:.*LeafSpec.* is deprecated:FutureWarning", "ignore:.*does not have many workers"
)
NAMES = ["still", "kind", "brightness"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Episodes whose brightness is a number of the state from 100 to 200, and whose kind says which half it is in."""
    folder, rng = tmp_path_factory.mktemp("labeled"), np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for number in range(24):
            level = rng.random(8)
            frames = (200 * level[:, None, None, None] + 55 * rng.random((8, 16, 16, 3))).astype(np.uint8)
            state = np.stack([np.full(8, 3.0), level > 0.5, 100 + 100 * level], axis=1).astype(np.float32)
            writer.write(f"episode-{number}", Episode(frames, state=state, meta={"state_names": NAMES}))
    return str(folder)


def make_module(**settings) -> SupervisedVJEPAModule:
    torch.manual_seed(0)
    settings = {
        "encoder": VideoEncoder(**SIZES),
        "probe": AttentiveClassifier(width=16, classes=settings.pop("classes", 1), heads=2, depth=1),
        "state_names": ["brightness"],
        "optimizer": OptimizerConfig(lr=3e-3, warmup=4, schedule="cosine", layer_decay=0.5),
        **settings,
    }
    return SupervisedVJEPAModule(**settings)


def fit(module: SupervisedVJEPAModule, data: str, folder: Path, stop: int, resume: str | None = None) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=40,
        limit_val_batches=4,
        val_check_interval=20,
        check_val_every_n_epoch=None,
        callbacks=[StopAt(stop)],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
    )
    clips = VideoDataModule(data, 2, batch_size=16, fields=["frames", "state"], workers=0, val_fraction=0.2)
    trainer.fit(module, datamodule=clips, ckpt_path=resume, weights_only=True)
    return trainer


class StopAt(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        trainer.should_stop = trainer.global_step >= self.step


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[SupervisedVJEPAModule, L.Trainer]:
    module = make_module()
    return module, fit(module, data, tmp_path_factory.mktemp("whole"), stop=40)


def test_encoder_and_probe_learn_the_named_number(trained: tuple[SupervisedVJEPAModule, L.Trainer]) -> None:
    module, trainer = trained
    assert float(trainer.callback_metrics["val/r2"]) > 0.8
    assert float(trainer.callback_metrics["val/r2"]) == pytest.approx(1 - float(trainer.callback_metrics["val/loss"]))
    start = make_module().encoder.state_dict()
    moved = [name for name, weight in module.encoder.state_dict().items() if not torch.equal(weight, start[name])]
    assert "patch_embed.proj.weight" in moved and "blocks.1.mlp.fc1.weight" in moved


def test_a_resumed_run_equals_an_uninterrupted_one(
    trained: tuple[SupervisedVJEPAModule, L.Trainer], data: str, tmp_path: Path
) -> None:
    part = fit(make_module(), data, tmp_path, stop=13)
    part.save_checkpoint(tmp_path / "part.ckpt")
    resumed = make_module()
    fit(resumed, data, tmp_path, stop=40, resume=str(tmp_path / "part.ckpt"))
    expected = trained[0].state_dict()
    assert {"state_columns", "state_mean", "state_std"} < set(expected)
    assert [name for name, value in resumed.state_dict().items() if not torch.equal(value, expected[name])] == []


def test_the_targets_are_found_by_name_and_standardized_by_the_data(
    data: str, trained: tuple[SupervisedVJEPAModule, L.Trainer]
) -> None:
    found = read_state_targets({data: 2.0}, ["brightness", "kind"])
    assert found.columns.tolist() == [2, 1] and trained[0].state_columns.tolist() == [2]
    assert found.mean[0] == pytest.approx(150, abs=8) and found.std[0] == pytest.approx(100 / 12**0.5, rel=0.1)
    with pytest.raises(ValueError, match=r"there is no speed in the state, only still, kind, brightness"):
        read_state_targets(data, ["speed"])
    with pytest.raises(ValueError, match="still never changes"):
        read_state_targets(data, ["still"])
    with pytest.raises(ValueError, match=r"brightness has the value 100.*, but classes are integers from 0 to .* = 1"):
        read_state_targets(data, ["brightness"], classes=2)


def test_a_class_is_learned_by_cross_entropy() -> None:
    module = make_module(target="class", state_names=["kind"], classes=3).double()
    module.state_columns.fill_(1)
    batch = clips(torch.tensor([2, 0, 1, 1]))
    loss, logs = module(batch)
    scores = module.probe(module.encoder(batch.frames.permute(0, 1, 4, 2, 3).double() / 127.5 - 1))
    expected = -scores.log_softmax(dim=1)[range(4), [2, 0, 1, 1]].mean()
    torch.testing.assert_close(loss, expected)
    assert logs["accuracy"] == (scores.argmax(dim=1) == torch.tensor([2, 0, 1, 1])).double().mean()


def clips(kinds: torch.Tensor) -> ClipBatch:
    frames = torch.randint(0, 256, (4, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = torch.stack((torch.full((4,), 3.0), kinds.float()), dim=1)
    return ClipBatch(frames=frames, state=state[:, None] * torch.tensor([[0.0], [1.0]]))  # at the last frame only


def test_the_learning_rate_falls_by_layer_from_the_probe_to_the_embedding() -> None:
    module = make_module()
    optimizer, _ = module.optimizer.build(module, max_steps=40)
    rates = {id(weight): group["initial_lr"] for group in optimizer.param_groups for weight in group["params"]}
    found = {name: rates[id(weight)] / 3e-3 for name, weight in module.named_parameters()}
    assert found["probe.linear.weight"] == found["encoder.norm.weight"] == 1
    assert found["encoder.blocks.1.mlp.fc1.weight"] == found["encoder.blocks.1.norm1.bias"] == 0.5
    assert found["encoder.blocks.0.mlp.fc1.weight"] == 0.25 and found["encoder.patch_embed.proj.weight"] == 0.125
    decays = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    assert {decays[id(w)] for w in module.parameters() if w.ndim == 1} == {0.0}


def test_a_frozen_encoder_starts_from_its_folder_and_stays(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_component(VideoEncoder(**SIZES), tmp_path / "encoder")
    module = make_module(pretrained=str(tmp_path), freeze_encoder=True, target="class", state_names=["kind"], classes=3)
    module.train().state_columns.fill_(1)
    module(clips(torch.tensor([2, 0, 1, 1])))[0].backward()
    assert all(weight.grad is None for weight in module.encoder.parameters()) and not module.encoder.training
    assert module.probe.linear.weight.grad is not None
    torch.manual_seed(5)
    assert torch.equal(module.encoder.patch_embed.proj.weight, VideoEncoder(**SIZES).patch_embed.proj.weight)
    exported = VJEPAFamily().export_networks(module, None, average=True)
    assert exported is not None and set(exported.networks) == {"encoder", "probe"}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"probe.width=8 but encoder.width=16"):
        make_module(probe=AttentiveClassifier(width=8, classes=1, heads=2, depth=1))
    with pytest.raises(ValueError, match=r"one name for each output"):
        make_module(state_names=["x", "y"])
    with pytest.raises(ValueError, match=r"weights of a Linear are not ordered in layers. Set it to 1"):
        OptimizerConfig(layer_decay=0.5).build(torch.nn.Linear(2, 2), max_steps=4)
    batch = clips(torch.tensor([2, 0, 1, 1]))
    batch.state = None
    with pytest.raises(ValueError, match=r"the clips have no state: name state in data.fields"):
        make_module()(batch)
