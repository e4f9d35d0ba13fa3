"""Frames of clips divided over processes; tests/train/test_sharded_training.py compares trainings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from factories import dit

from vwm.data.datamodule import VideoDataModule
from vwm.models.dit.module import DiTModule
from vwm.models.dit.objectives import DiffusionForcing
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.vjepa.module import VJEPAModule
from vwm.nn.context_parallel import ContextGroup, DividedFrames, check_group_size
from vwm.nn.optimizer import OptimizerConfig
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.train.context_parallel import share_clips
from vwm.train.global_batch import divide_global_batch


def test_every_process_has_equally_many_frames_of_each_segment():
    past, hidden = torch.arange(5), torch.arange(5, 9)
    parts = [[ContextGroup(2, rank).part(x[None], 1)[0] for x in (past, hidden)] for rank in range(2)]
    assert [len(part) for part in parts[0] + parts[1]] == [2, 2, 3, 2]
    division = DividedFrames(ContextGroup(2, 0), (5, 4))
    assert division.counts == [4, 5]
    assert torch.equal(division.order(past.device), torch.cat(parts[0] + parts[1]))


def test_a_group_of_one_changes_nothing():
    class Alone(ContextGroup):
        def exchange(self, received, sent, received_sizes, sent_sizes):
            assert received_sizes == sent_sizes == [len(sent)]
            received.copy_(sent)

    division = DividedFrames(Alone(1, 0), (3, 2))
    x = torch.randn(2, 5, 4, 3)
    assert torch.equal(division.order(x.device), torch.arange(5))
    assert torch.equal(division.places_to_frames(division.frames_to_places(x), 4), x)
    assert torch.equal(division.join(x[:, :3]), x[:, :3])


def test_what_cannot_be_divided_is_refused():
    group = ContextGroup(3, 0)
    with pytest.raises(ValueError, match="cannot divide 2 frames: raise data"):
        DividedFrames(group, (8, 2))
    with pytest.raises(ValueError, match="cannot divide 2 tokens"):
        DividedFrames(group, (3,)).frames_to_places(torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match="4 processes cannot be divided into groups of 3"):
        check_group_size(3, 4)
    with pytest.raises(ValueError, match=r"VJEPAModule cannot .* attend to all tokens .* context_parallel to 1"):
        VJEPAModule.share_clips(VJEPAModule.__new__(VJEPAModule), group)
    module = DiTModule(
        PixelTokenizer((4, 4)),
        dit(grid=(4, 4), channels=3, attention="full"),
        DiffusionForcing(),
        OptimizerConfig(),
        context="noisy",
    )
    with pytest.raises(ValueError, match="attention=factored, and it is full"):
        module.share_clips(group)
    with pytest.raises(ValueError, match="give FSQ levels"):
        LatentActionModel((8, 8), 4, codebook=4, width=8, depth=1, heads=1).share_clips(group)


def test_groups_of_processes_divide_a_global_batch():
    trainer = SimpleNamespace(
        world_size=4, accumulate_grad_batches=1, callbacks=[], val_check_interval=1.0, limit_train_batches=1.0
    )
    data = VideoDataModule("data", batch_size=2)
    share_clips(trainer, data, 2)
    divide_global_batch(trainer, data, 8)
    assert data.processes_per_clip == 2 and trainer.accumulate_grad_batches == 2
    assert trainer.callbacks[0].division.ranks == 2 and trainer.callbacks[-1].size == 2
