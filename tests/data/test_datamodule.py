"""The loader gives the same global batches for every number of workers and ranks, and resumes at any step."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clips import ClipBatch, ClipDataset
from vwm.data.datamodule import ClipLoader, VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter


def write(folder: Path, shard: int, episodes: int, side: int = 4) -> None:
    rng = np.random.default_rng(shard)
    with ShardWriter(folder / f"shard-{shard:06d}.tar") as writer:
        for episode in range(episodes):
            length = int(rng.integers(6, 20))
            frames = rng.integers(0, 256, (length, side, side, 3), dtype=np.uint8)
            writer.write(f"{shard}-{episode}", Episode(frames, rng.integers(0, 9, length)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for shard in range(4):
        write(tmp_path / "data", shard, 5)
    return tmp_path / "data"


@pytest.fixture
def clips(data: Path) -> ClipDataset:
    return make_clip_dataset(str(data), 4, seed=3)


def same(a: Iterable[ClipBatch], b: Iterable[ClipBatch]) -> bool:
    """Are two runs of batches equal in every bit?"""
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        (x is None and y is None) or torch.equal(x, y)
        for one, other in zip(a, b, strict=True)
        for x, y in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def join(ranks: Iterable[ClipBatch]) -> ClipBatch:
    """The global batch of the ranks' batches."""
    batches = list(ranks)
    return ClipBatch(
        **{k: torch.cat([vars(b)[k] for b in batches]) for k, v in vars(batches[0]).items() if v is not None}
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_batch(clips: ClipDataset, workers: int) -> None:
    here, there = ClipLoader(clips, 4), ClipLoader(clips, 4, workers=workers)
    for _ in range(2):  # epochs
        assert same(here, there)


def test_workers_start_as_the_platform_starts_them_whatever_other_packages_set(clips: ClipDataset) -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)  # as TorchRL's import does
    try:
        earlier = multiprocessing.active_children()  # of other tests' loaders, which are ending
        batches = iter(ClipLoader(clips, 4, workers=1))
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - set(earlier)
        assert isinstance(worker, multiprocessing.get_context(multiprocessing.get_all_start_methods()[0]).Process)
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(clips: ClipDataset, world: int) -> None:
    alone = ClipLoader(clips, 8)
    ranks = [ClipLoader(clips, 8 // world, rank, world) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for _ in range(2):
        assert same(alone, (join(batches) for batches in zip(*ranks, strict=True)))


def test_an_epoch_shows_every_clip_once(clips: ClipDataset) -> None:
    loader = ClipLoader(clips, 4)
    assert len(loader) == len(clips.order) // 4
    seeds = [seed for batch in loader for seed in batch.seed.tolist()]
    assert len(set(seeds)) == len(seeds) == 4 * len(loader)
    assert not same(loader, ClipLoader(clips, 4))  # the second epoch is not the first


def test_resume_is_one_number_and_exact(clips: ClipDataset) -> None:
    length = len(ClipLoader(clips, 4))
    uninterrupted: list[ClipBatch] = []
    whole = ClipLoader(clips, 4)
    for _ in range(3):
        uninterrupted += whole
    # In an epoch, at its last batch, past its end, at the end of everything.
    for at in (0, 1, length - 1, length, length + 2, 2 * length, 3 * length - 1):
        stopped = ClipLoader(clips, 4, workers=1)
        for _ in range(at // length):
            list(stopped)
        list(islice(stopped, at % length))
        state = stopped.state_dict()
        assert state["global_batches"] == at
        resumed = ClipLoader(clips, 4)
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert len(rest) == length - at % length
        rest += [batch for _ in range((3 * length - resumed.global_batches) // length) for batch in resumed]
        assert same(rest, uninterrupted[at:])


def test_resume_reads_no_earlier_batch(clips: ClipDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = ClipLoader(clips, 4)
    loader.load_state_dict({**loader.state_dict(), "global_batches": 10**9 + 2})
    asked: list[tuple[int, int]] = []
    read = ClipDataset.__getitem__
    monkeypatch.setattr(ClipDataset, "__getitem__", lambda self, at: (asked.append(at), read(self, at))[1])
    next(iter(loader))
    epoch, start = divmod(10**9 + 2, len(loader))
    assert asked == [(epoch, 4 * start + i) for i in range(4)]


def test_a_run_resumes_with_another_number_of_ranks(clips: ClipDataset) -> None:
    alone = ClipLoader(clips, 4)
    list(islice(alone, 2))
    ranks = [ClipLoader(clips, 2, rank, 2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
    reference = ClipLoader(clips, 4)
    assert same(list(reference)[2:], (join(batches) for batches in zip(*ranks, strict=True)))


@pytest.mark.parametrize(("world", "limit"), [(1, 6), (1, 2), (2, 2), (3, 8), (4, 1), (4, 2)])
def test_a_global_batch_is_the_same_on_all_ranks_and_limits(clips: ClipDataset, world: int, limit: int) -> None:
    """It is joined from micro-batches, also after a stop within an epoch on another number of ranks."""
    alone = ClipLoader(clips, 6)
    expected = list(alone) + list(alone)
    stopped = [ClipLoader(clips, 4, rank, 2, global_batch=6) for rank in range(2)]
    for loader in stopped:
        list(islice(loader, 2))
    ranks = [ClipLoader(clips, limit, rank, world, workers=rank % 2, global_batch=6) for rank in range(world)]
    for loader in ranks:
        loader.load_state_dict(stopped[1].state_dict())
    division = ranks[0].division
    joined = []
    for _ in range(2):
        parts = [part for batches in zip(*ranks, strict=True) for part in enumerate(batches)]
        for start in range(0, len(parts), world * division.accumulation):
            step = enumerate(parts[start : start + world * division.accumulation])
            real = [batch for i, (rank, batch) in step if division.clips(rank, i // world)]
            joined.append(join(real))
    assert same(joined, expected[2:])
    assert {loader.global_batches for loader in ranks} == {len(expected)}


def test_rejects_the_state_of_other_data(data: Path, clips: ClipDataset) -> None:
    state = ClipLoader(clips, 4).state_dict()
    refused = {
        "batch size x ranks": ClipLoader(clips, 2),
        r"data\.seed, or the span of a clip": ClipLoader(make_clip_dataset(str(data), 4, seed=4), 4),
        "span of a clip": ClipLoader(make_clip_dataset(str(data), 5, seed=3), 4),
        "the shards or their weights differ": ClipLoader(
            make_clip_dataset(str(data), 4, seed=3, split="train", val_fraction=0.3), 4
        ),
    }
    write(data, 4, 2)
    refused["the shards"] = ClipLoader(make_clip_dataset(str(data), 4, seed=3), 4)
    for said, loader in refused.items():
        with pytest.raises(ValueError, match=f"cannot resume in the same order: .*{said}.*start a new run"):
            loader.load_state_dict(state)
        assert loader.global_batches == 0
    ClipLoader(clips, 1, 2, 4).load_state_dict(state)  # the same global batch


def test_rejects_too_little_data(clips: ClipDataset) -> None:
    count = len(clips.order)
    with pytest.raises(
        ValueError, match=f"an epoch has {count} clips, fewer than one global batch of {count} x 2 ranks"
    ):
        ClipLoader(clips, count, 0, 2)


def test_the_global_generator_is_not_used(clips: ClipDataset) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(islice(ClipLoader(clips, 4, workers=workers), 2))
    assert torch.equal(torch.get_rng_state(), before)


def keys(data: Path, part: str, fraction: float = 0.4) -> set[str]:
    clips = make_clip_dataset(str(data), 4, split=part, val_fraction=fraction)
    return {entry.key for shard in clips.shards for entry in shard.episodes}


def labels(data: Path, share: float, part: str = "all") -> dict[str, bool]:
    """Whether the actions of an episode are given, by its key."""
    clips = make_clip_dataset(str(data), 4, split=part, val_fraction=0.4, labeled_fraction=share)
    found: dict[str, bool] = {}
    for position in range(len(clips.order)):
        address, clip = clips.order.address(0, position), clips[0, position]
        key = clips.shards[address.shard].episodes[address.episode].key
        assert found.setdefault(key, bool(clip["labeled"])) == clip["labeled"]
        assert clip["labeled"] or not clip["actions"].any()
    return found


def test_labeled_episodes_are_nested_and_of_the_requested_number(data: Path) -> None:
    write(data, 9, 80)  # a hundred in all
    few, more, all_but_one, none = (labels(data, share) for share in (0.03, 0.4, 0.99, 0.0))
    assert {k for k in few if few[k]} < {k for k in more if more[k]} < {k for k in all_but_one if all_but_one[k]}
    assert [sum(found.values()) for found in (few, more, all_but_one, none)] == [3, 40, 99, 0]
    assert sum(labels(data, 1e-9).values()) == 1
    held_out = keys(data, "val")  # labeling has nothing to do with holding out
    assert np.mean([more[key] for key in held_out]) == pytest.approx(0.4, abs=0.15)


def test_actions_of_unlabeled_clips_are_hidden_and_others_unchanged(data: Path) -> None:
    every, some = make_clip_dataset(str(data), 4), make_clip_dataset(str(data), 4, labeled_fraction=0.5)
    for known, given in zip(ClipLoader(every, 4), ClipLoader(some, 4), strict=True):
        assert known.labeled is None and given.labeled is not None and given.labeled.dtype == torch.bool
        assert torch.equal(given.actions, known.actions * given.labeled[:, None])
        assert torch.equal(given.frames, known.frames) and torch.equal(given.seed, known.seed)
    assert same(ClipLoader(some, 4), ClipLoader(some, 4, workers=1))


def test_only_training_clips_lose_their_labels(data: Path) -> None:
    module = trained(VideoDataModule(str(data), 4, batch_size=2, workers=0, val_fraction=0.4, labeled_fraction=0.5))
    assert {bool(flag) for batch in module.train_dataloader() for flag in batch.labeled} == {True, False}
    assert all(batch.labeled is None and batch.actions.any() for batch in module.val_dataloader())


def test_rejects_a_labeled_fraction_out_of_range(data: Path) -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"labeled_fraction must be between 0 and 1, got {share}"):
            make_clip_dataset(str(data), 4, labeled_fraction=share)


def test_the_split_is_disjoint_and_stays(data: Path) -> None:
    every, train, val = (keys(data, part) for part in ("all", "train", "val"))
    assert train and val and not train & val and train | val == every
    assert val < keys(data, "val", 0.7)  # more held out: the same ones and others
    write(data, 9, 20)
    assert keys(data, "train") & every == train and keys(data, "val") & every == val
    assert len(keys(data, "val")) > len(val)
    with pytest.raises(ValueError, match="split='test' must be 'all', 'train' or 'val'"):
        keys(data, "test")
    with pytest.raises(ValueError, match="none of the 40 episodes is in the val split"):
        keys(data, "val", 1e-9)


def trained(data: VideoDataModule, rank: int = 0, world: int = 1) -> VideoDataModule:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy
    )
    return data


def test_the_datamodule(data: Path) -> None:
    module = trained(VideoDataModule(str(data), 4, batch_size=2, workers=0, val_fraction=0.4), rank=1, world=2)
    train, val = module.train_dataloader(), module.val_dataloader()
    assert (train.rank, train.world_size, train.batch_size) == (1, 2, 2)
    assert {e.key for s in train.dataset.shards for e in s.episodes} == keys(data, "train")
    assert {e.key for s in val.dataset.shards for e in s.episodes} == keys(data, "val")
    assert not same(train, train)
    assert same(val, val)  # validation shows the same clips each time


def test_validation_is_left_out_where_nothing_is_held_out(data: Path, tmp_path: Path) -> None:
    def val(**options: Any) -> Any:
        return trained(VideoDataModule(str(data), 4, batch_size=2, workers=0, **options)).val_dataloader()

    assert val(val_fraction=0) == []
    assert val(val_fraction=1e-9) == []
    write(tmp_path / "other", 7, 3)
    module = trained(VideoDataModule(str(data), 4, 2, workers=0, val_path=str(tmp_path / "other")))
    assert {e.key for s in module.val_dataloader().dataset.shards for e in s.episodes} == {"7-0", "7-1", "7-2"}
    assert {e.key for s in module.train_dataloader().dataset.shards for e in s.episodes} == keys(data, "all")


def test_pieces_of_one_video_are_on_the_same_side_of_the_split(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        for video in range(12):
            for piece in range(6):
                writer.write(f"000000-{video:04d}-{piece:05d}", Episode(np.zeros((4, 8, 8, 3), np.uint8)))
    sides = {}
    for split in ("train", "val"):
        clips = make_clip_dataset(str(tmp_path), 4, fields=("frames",), split=split, val_fraction=0.4)
        sides[split] = {entry.key.rpartition("-")[0] for shard in clips.shards for entry in shard.episodes}
    assert not sides["train"] & sides["val"] and len(sides["train"] | sides["val"]) == 12 and len(sides["val"]) > 1


def test_clips_without_labels_are_marked_where_others_have_them(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        for number in range(4):
            actions = np.full((8, 2), 0.5, np.float32) if number % 2 else None
            writer.write(f"{number}", Episode(np.full((8, 8, 8, 3), number, np.uint8), actions))
    batch = next(iter(VideoDataModule(str(tmp_path), 8, batch_size=4, workers=0, val_fraction=0).train_dataloader()))
    expected = (batch.frames[:, 0, 0, 0, 0] % 2).bool()
    assert torch.equal(batch.labeled, expected)
    assert torch.equal(batch.actions, expected[:, None, None].expand(4, 8, 2) * 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"clip_length": -1}, "clip_length must be 1 or more, got -1"),
        ({"val_fraction": -0.5}, r"val_fraction must lie in 0\.\.1, got -0\.5"),
        ({"labeled_fraction": 1.5}, r"labeled_fraction must lie in 0\.\.1, got 1\.5"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoDataModule("data", **settings)  # type: ignore[arg-type]


def test_validation_shards_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "val.tar").write_text("rubbish")
    with pytest.raises(ValueError, match=r"val\.tar: not a complete tar file"):
        VideoDataModule("data", val_path=str(tmp_path / "val.tar")).val_dataloader()


FAILING = """
import sys
import torch.utils.data._utils
from vwm.data.datamodule import VideoDataModule
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1
batches = iter(VideoDataModule(sys.argv[1], 4, batch_size=1, workers=2, val_fraction=0).train_dataloader())
for batch in batches:
    kept = batch  # an error below keeps the reader processes alive, as a traceback does
    if sys.argv[2] == "kill":
        import multiprocessing
        multiprocessing.active_children()[0].kill()
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [("short", "ValueError: .*a.actions.npy: has 3 rows"), ("kill", "ChildProcessError: a reader process ended unexp")],
)
def test_an_error_or_a_kill_of_a_reader_process_ends_the_program(tmp_path: Path, fault: str, message: str) -> None:
    with ShardWriter(tmp_path / "shard-000000.tar") as writer:
        for key in "abcdefgh":
            sample = {"__key__": key, "frames.npy": np.zeros((8, 8, 8, 3), np.uint8), "actions.npy": np.zeros(8, int)}
            if fault == "short" and key == "a":
                sample["actions.npy"] = np.zeros(3, int)
            writer.write_sample(sample)
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path), fault], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 1 and re.search(message, ended.stderr), ended.stderr
    assert "Original Traceback" not in ended.stderr.splitlines()[-1]
