"""The LightningDataModule: clips from shards, in an order that any run can take up again anywhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vwm.data.clip_order import ClipOrder
from vwm.data.clips import ClipBatch, ClipDataset, collate_clips
from vwm.data.episode_selection import key_hash
from vwm.data.shard_index import ShardIndex, list_shards, load_shard_index


class ClipLoader:
    """Batches of one rank, sized, and resumable in constant time.

    ``iter()`` goes on where the loader stands: after ``load_state_dict`` in the middle of an epoch, and after a whole
    epoch at the start of the next. The state is one number, the same on every rank: global batches given out.

    Args:
        dataset: the clips.
        batch_size: of this rank.
        rank, world: which part of the global batch this rank gets.
        workers: processes that read; 0 reads in this one. No choice of it changes a batch.
        timeout: seconds after which a worker that gives nothing is an error; 0 waits forever.

    Raises:
        ValueError: an epoch is smaller than one global batch.
    """

    def __init__(
        self, dataset: ClipDataset, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0, timeout: float = 0
    ) -> None:
        self.dataset, self.batch_size, self.rank, self.world = dataset, batch_size, rank, world
        self.workers, self.timeout = workers, timeout
        self.given = 0
        if not len(self):
            raise ValueError(
                f"an epoch has {len(dataset.order)} clips, less than one global batch of "
                f"{batch_size} x {world} ranks: set a smaller data.batch_size, or add data"
            )

    def __len__(self) -> int:
        """Batches in an epoch: as many on every rank; what does not fill a global batch waits for the next epoch."""
        return len(self.dataset.order) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[ClipBatch]:
        epoch, start = divmod(self.given, len(self))
        loader = DataLoader(
            self.dataset,
            batch_sampler=_BatchSampler(self, epoch, start),
            num_workers=self.workers,
            collate_fn=collate_clips,
            worker_init_fn=_ignore_first_sigterm,
            pin_memory=torch.cuda.is_available(),
            timeout=self.timeout if self.workers else 0,
            # A generator of its own: torch's would draw from the global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, and of which data that is said."""
        return {
            "global_batches": self.given,
            "global_batch_size": self.batch_size * self.world,
            "index_hash": self.dataset.order.index_hash,
            "order": [self.dataset.order.seed, self.dataset.order.span],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where ``state`` says. Raises ValueError where the data or the global batch are not the same."""
        here = self.state_dict()
        for key, meaning in (
            ("global_batch_size", "batch size x ranks"),
            ("index_hash", "the shards"),
            ("order", "data.seed, or the clip's span"),
        ):
            if state[key] != here[key]:
                raise ValueError(
                    f"cannot resume in the same order: {meaning} differ ({key} was {state[key]}, is {here[key]}). "
                    f"Give the run the data and batch size it had, or start a new run from its weights."
                )
        self.given = state["global_batches"]


def _ignore_first_sigterm(worker: int) -> None:
    """Schedulers send SIGTERM to every process of a job: the reading ones must go on until the run has been saved."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class _BatchSampler(Sequence[list[tuple[int, int]]]):
    """The (epoch, position) of every clip of every batch of one rank from ``start`` to the epoch's end."""

    def __init__(self, loader: ClipLoader, epoch: int, start: int) -> None:
        self.loader, self.epoch, self.start = loader, epoch, start

    def __len__(self) -> int:
        return len(self.loader) - self.start

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        size = self.loader.batch_size
        first = ((self.start + number) * self.loader.world + self.loader.rank) * size
        return [(self.epoch, first + i) for i in range(size)]


class VideoDataModule(L.LightningDataModule):
    """Clips of shards for training and validation.

    Args:
        path: the shards: a folder, a tar, a pattern, or an fsspec address (s3://, gs://, https://).
        clip_length: frames a clip.
        batch_size: clips a batch and rank.
        stride: frames from one frame of a clip to its next.
        fields: what to read: frames, actions, rewards, state, terminated, latents.
        workers: processes that read a rank's clips.
        seed: of the shuffle.
        val_fraction: share of the episodes held out for validation, chosen by a hash of their keys, so that an
            episode never changes sides when data are added.
        val_path: other shards to validate on instead.
        timeout: seconds to wait for a reading process; 0 waits forever.
        labelled: share of the training episodes whose actions are given; a clip of the others has actions 0 and
            ``labelled`` False. Chosen by a hash of their keys: the ones of a share are among those of any larger one.
    """

    def __init__(
        self,
        path: str,
        clip_length: int = 16,
        batch_size: int = 8,
        stride: int = 1,
        fields: list[str] = ["frames", "actions"],  # noqa: B006 (jsonargparse shows it; read only)
        workers: int = 2,
        seed: int = 0,
        val_fraction: float = 0.05,
        val_path: str | None = None,
        timeout: float = 300,
        labelled: float = 1.0,
    ) -> None:
        super().__init__()
        self.path, self.val_path, self.val_fraction = path, val_path, val_fraction
        self.clip_length, self.batch_size, self.stride, self.fields = clip_length, batch_size, stride, list(fields)
        self.workers, self.seed, self.timeout, self.labelled = workers, seed, timeout, labelled

    def train_dataloader(self) -> ClipLoader:
        """This rank's training batches."""
        part = "train" if self.val_path is None and self.val_fraction > 0 else "all"
        return self._loader(ClipLoader, self.path, part, self.workers, self.labelled)

    def val_dataloader(self) -> list[ClipLoader] | ClipLoader:
        """This rank's validation batches, in a fixed shuffled order; none where nothing is held out."""
        if self.val_path is None and self.val_fraction == 0:
            return []
        path, part = (self.val_path, "all") if self.val_path is not None else (self.path, "val")
        try:
            return self._loader(_ValidationLoader, path, part, workers=0)
        except ValueError:
            return []  # too little held out for one batch: train without validation

    def _loader(self, kind: type[ClipLoader], path: str, part: str, workers: int, labelled: float = 1.0) -> ClipLoader:
        dataset = make_clip_dataset(
            path, self.clip_length, self.stride, self.fields, self.seed, True, part, self.val_fraction, labelled
        )
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return kind(dataset, self.batch_size, rank, world, workers, self.timeout)


class _ValidationLoader(ClipLoader):
    """A loader that gives the same first epoch every time, for validation."""

    def __iter__(self) -> Iterator[ClipBatch]:
        self.given = 0
        return super().__iter__()


def make_clip_dataset(
    path: str,
    clip_length: int,
    stride: int = 1,
    fields: Sequence[str] = ("frames", "actions"),
    seed: int = 0,
    shuffle: bool = True,
    part: str = "all",
    val_fraction: float = 0.05,
    labelled: float = 1.0,
) -> ClipDataset:
    """The clips of a data set.

    Args:
        path: see ``VideoDataModule``.
        clip_length, stride, fields: of a clip.
        seed, shuffle: of the order.
        part: ``all`` episodes, the ``train`` or the held-out ``val`` ones.
        val_fraction: the share that is held out.
        labelled: the share whose actions are given.
    """
    paths = list_shards(path)
    shards = [_select_split(load_shard_index(p), part, val_fraction) for p in paths]
    order = ClipOrder(shards, clip_length, stride, seed, shuffle)
    return ClipDataset(paths, shards, order, clip_length, stride, fields, labelled)


def _select_split(shard: ShardIndex, part: str, val_fraction: float) -> ShardIndex:
    if part == "all":
        return shard
    if part not in ("train", "val"):
        raise ValueError(f"part={part!r} must be 'all', 'train' or 'val'")
    return replace(
        shard, episodes=tuple(e for e in shard.episodes if (key_hash(e.key) < val_fraction) == (part == "val"))
    )
