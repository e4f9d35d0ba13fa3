"""Batches copied ahead: the same ones in the same order, with the position of those that were handed over."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.data import batch_copies
from vwm.data.batch_copies import BatchCopies, copy_ahead
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipBatch, ClipDataset
from vwm.data.datamodule import ClipLoader, VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter

CPU = torch.device("cpu")


@pytest.fixture
def clips(tmp_path: Path) -> ClipDataset:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        for episode in range(6):
            frames = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
            writer.write(str(episode), Episode(frames, rng.integers(0, 9, 12)))
    return make_clip_dataset(str(tmp_path), 4, seed=3)


def contents(batch: ClipBatch) -> dict[str, list]:
    return {name: x.tolist() for name, x in vars(batch).items() if x is not None}


def test_batches_order_and_positions_are_those_of_the_plain_loader(clips: ClipDataset) -> None:
    plain, ahead = ClipLoader(clips, 3), ClipLoader(clips, 3, device=CPU)
    for _ in range(2):  # epochs
        for number, (here, there) in enumerate(zip(plain, ahead, strict=True)):
            assert contents(here) == contents(there)
            assert ahead.state_dict() == plain.state_dict() and ahead.global_batches % len(plain) == (number + 1) % len(
                plain
            )


@pytest.mark.parametrize("taken", [1, 3])
def test_a_resumed_loader_gives_the_batch_that_was_only_copied(clips: ClipDataset, taken: int) -> None:
    expected = [contents(batch) for batch in ClipLoader(clips, 3)]
    stopped, resumed = ClipLoader(clips, 3, device=CPU), ClipLoader(clips, 3, device=CPU)
    assert [contents(batch) for batch in islice(iter(stopped), taken)] == expected[:taken]
    resumed.load_state_dict(stopped.state_dict())
    assert [contents(batch) for batch in resumed] == expected[taken:]
    assert [contents(batch) for batch in stopped] == expected[taken:]  # also without loading


def test_the_next_copy_begins_before_a_batch_is_handed_over(clips: ClipDataset, monkeypatch) -> None:
    log: list[str] = []

    class Recorder(BatchCopies):
        def begin(self, batch: ClipBatch) -> ClipBatch:
            log.append("begin")
            return super().begin(batch)

        def finish(self, batch: ClipBatch) -> ClipBatch:
            log.append("finish")
            return super().finish(batch)

    monkeypatch.setattr(batch_copies, "BatchCopies", Recorder)
    for _ in islice(copy_ahead(iter(ClipLoader(clips, 3)), CPU), 2):
        log.append("use")
    assert log == ["begin", "begin", "finish", "use", "begin", "finish", "use"]


def test_seeds_stay_in_the_hosts_memory(clips: ClipDataset) -> None:
    (batch,) = islice(ClipLoader(clips, 2), 1)
    moved = BatchCopies(torch.device("meta")).begin(batch)
    assert moved.frames.is_meta and moved.actions.is_meta and moved.seed is batch.seed and moved.rewards is None


def test_training_on_a_cpu_copies_nothing(tmp_path: Path, clips: ClipDataset) -> None:
    module = VideoDataModule(str(tmp_path), 4, batch_size=2, workers=0, val_fraction=0)
    assert module.train_dataloader().device is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_copies_on_a_stream_of_their_own_arrive_whole(clips: ClipDataset) -> None:
    expected = [contents(batch) for batch in ClipLoader(clips, 3)]
    found = []
    for batch in ClipLoader(clips, 3, device=torch.device("cuda")):
        assert batch.frames.is_cuda and not batch.seed.is_cuda
        torch.cuda._sleep(1_000_000)
        found.append(batch)
    assert [contents(batch) for batch in found] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_loader_pins_batches(clips: ClipDataset) -> None:
    assert all(batch.frames.is_pinned() and batch.seed.is_pinned() for batch in ClipLoader(clips, 3))
