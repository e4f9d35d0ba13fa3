"""The clip order, shards and batches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hashing import put

from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import ClipOrder
from vwm.data.datamodule import ClipLoader, VideoDataModule
from vwm.data.episode import Episode
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex
from vwm.data.shards import ShardWriter


def orders(name: str) -> None:
    rng = np.random.default_rng(0)
    for trial in range(6):
        layout = [rng.integers(0, 40, rng.integers(0, 6)).tolist() for _ in range(rng.integers(1, 12))] + [[50]]
        shards = [
            ShardIndex(
                tar=f"shard-{s:06d}.tar",
                size=0,
                hash=f"hash{s}",
                episodes=tuple(EpisodeIndexEntry(f"{s}-{e}", frames, 8, 8, 0, {}) for e, frames in enumerate(shard)),
            )
            for s, shard in enumerate(layout)
        ]
        length, stride, block = int(rng.integers(1, 8)), int(rng.integers(1, 4)), int(rng.integers(1, 6))
        order = ClipOrder(shards, length, stride, seed=trial, shuffle=bool(trial % 3), shards_per_block=block)
        put(f"{name}/{trial}/index_hash", order.index_hash)
        for epoch in (0, 1, 7):
            put(f"{name}/{trial}/epoch{epoch}", [tuple(order.address(epoch, p)) for p in range(len(order))])


def counting_episode(first: int, length: int, side: int = 32) -> Episode:
    rng = np.random.default_rng(first)
    actions = rng.integers(1, 4, length)
    numbers = first + np.concatenate(([0], actions[:-1].cumsum()))
    frames = np.broadcast_to(numbers[:, None, None, None], (length, side, side, 3)).astype(np.uint8)
    state = np.stack((numbers, np.arange(length)), axis=1).astype(np.float32)
    return Episode(frames, actions, (actions * 0.5).astype(np.float32), state, terminated=first % 2 == 0)


def shards(name: str) -> None:
    wanted = ("frames", "actions", "rewards", "state", "terminated")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for shard, raw in enumerate((True, True, False)):
            with ShardWriter(data / f"shard-{shard:06d}.tar") as writer:
                for episode in range(3):
                    length = 14 + 5 * episode + shard
                    writer.write(f"{shard}-{episode}", counting_episode(20 * episode + 7 * shard, length), raw=raw)
        for path in sorted(data.iterdir()):
            put(f"{name}/file/{path.name}", path.read_bytes())
        kinds: dict[str, dict[str, Any]] = {
            "plain": {"fields": wanted},
            "labelled": {"fields": wanted, "labeled_fraction": 0.5, "seed": 3},
            "strided": {"fields": ("frames",), "stride": 2},
            "unshuffled": {"fields": wanted, "shuffle": False},
            "train": {"fields": wanted, "split": "train", "val_fraction": 0.3},
            "val": {"fields": wanted, "split": "val", "val_fraction": 0.3},
        }
        for kind, settings in kinds.items():
            found = make_clip_dataset(str(data), 4, **settings)
            for rank in range(2 if kind == "plain" else 1):
                loader = ClipLoader(found, 3, rank, 2) if kind == "plain" else ClipLoader(found, 2)
                for epoch in range(2):
                    put(f"{name}/{kind}/rank{rank}/epoch{epoch}", list(loader))
                put(f"{name}/{kind}/rank{rank}/state", list(loader.state_dict().values()))
        module = VideoDataModule(str(data), 4, 2, fields=list(wanted), workers=0, val_fraction=0.3, seed=5)
        put(f"{name}/module/train", list(module.train_dataloader()))
        put(f"{name}/module/val", list(module.val_dataloader()))
