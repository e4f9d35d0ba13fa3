"""Data that are encoded once before a training: which fields it reads then, and that nothing is encoded twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import dynamics, latent_action, tokenizer

from vwm.core.components import save_component
from vwm.core.folder_lock import FolderInUseError
from vwm.data.datamodule import VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.genie.module import GenieModule
from vwm.nn.optimizer import OptimizerConfig
from vwm.train import encoding_ahead
from vwm.train.encoding_ahead import encode_data_ahead, frozen_tokenizer_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("data", "val"):
        with ShardWriter(tmp_path / part / "shard-000000.tar") as writer:
            frames = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
            writer.write(part, Episode(frames, rng.integers(0, 4, 12)), raw=True)
    save_component(tokenizer().eval(), tmp_path / "tokenizer")
    return tmp_path


def module(root: Path, labeled: bool = True) -> GenieModule:
    actions = None if labeled else latent_action()
    return GenieModule(root / "tokenizer", dynamics(), OptimizerConfig(lr=1e-3), latent_action=actions)


def data(root: Path, **changes: Any) -> VideoDataModule:
    settings = {"val_path": str(root / "val"), "clip_length": 4, "batch_size": 2, "workers": 0} | changes
    return VideoDataModule(str(root / "data"), **settings)


@pytest.mark.parametrize("labeled", [True, False])
def test_a_training_reads_latents_with_the_loss_of_frames(root: Path, labeled: bool, capsys) -> None:
    genie, clips, config = module(root, labeled).eval(), data(root), {}
    before = next(iter(clips.train_dataloader()))
    encode_data_ahead(genie, clips, config, root / "run")
    assert config == {"path": clips.path, "val_path": clips.val_path, "fields": clips.fields}
    assert clips.fields == [*([] if labeled else ["frames"]), "actions", "latents"]
    assert Path(clips.path).parent == root and "training on latents in" in capsys.readouterr().out
    after, held_out = next(iter(clips.train_dataloader())), next(iter(clips.val_dataloader()))
    assert torch.equal(after.actions, before.actions) and held_out.latents is not None
    assert (after.frames is None) == labeled
    genie.train()
    loss, _ = genie(after)
    assert loss.isfinite()


def test_a_second_training_encodes_nothing(root: Path, monkeypatch) -> None:
    first, second = data(root), data(root)
    encode_data_ahead(module(root), first, {}, root / "run")
    monkeypatch.setattr("vwm.tokenizers.shard_encoding.encode_episode", lambda *arguments: pytest.fail("encoded again"))
    encode_data_ahead(module(root), second, {}, root / "another")
    assert second.path == first.path


def test_one_process_encodes_while_others_wait(root: Path, monkeypatch, capsys) -> None:
    attempts: list[str] = []
    write = encoding_ahead.write_encoded_shards

    def busy_at_first(shards: str, tokenizer: Path, out: Path) -> list[str]:
        attempts.append(shards)
        if len(attempts) < 3:
            raise FolderInUseError("busy")
        return write(shards, tokenizer, out)

    monkeypatch.setattr(encoding_ahead, "write_encoded_shards", busy_at_first)
    monkeypatch.setattr(encoding_ahead, "WAIT_SECONDS", 0.0)
    encode_data_ahead(module(root), data(root, val_path=None), {}, root / "run")
    assert len(attempts) == 3 and capsys.readouterr().out.count("waiting for another process") == 1


def test_what_cannot_be_encoded_ahead_is_refused(root: Path) -> None:
    assert frozen_tokenizer_folder(module(root), data(root)) == str(root / "tokenizer")
    for clips in (data(root, fields=["latents", "actions"]), data(root, fields=["actions"])):
        assert frozen_tokenizer_folder(module(root), clips) is None
    assert frozen_tokenizer_folder(SimpleNamespace(tokenizer=tokenizer()), data(root)) is None
    with pytest.raises(ValueError, match="encode_ahead encodes the frames of a training whose frozen tokenizer"):
        encode_data_ahead(module(root), data(root, fields=["latents"]), {}, root / "run")
