"""The Lightning data module: batches of clips, resumable at any step."""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from vwm.core.checks import check_fraction, check_not_negative, check_positive
from vwm.core.remote_files import StoreError
from vwm.data.batch_copies import copy_ahead
from vwm.data.batch_division import BatchDivision
from vwm.data.clip_folders import make_clip_dataset
from vwm.data.clip_order import NotEnoughClipsError
from vwm.data.clips import ClipBatch, ClipDataset, collate_clips
from vwm.data.mixtures import UNMIXED, DataPath, EpisodeBuckets, MixtureOptions, count_drawn
from vwm.data.reader_processes import ignore_ended_workers, kill_workers, prepare_worker, worker_message
from vwm.data.shard_cache import ShardCache, user_cache


class ClipLoader:
    """An iterable of the batches of one rank, resumable in constant time.

    ``iter()`` continues from the current position: in the middle of an epoch after ``load_state_dict``, and with the
    next epoch after a complete one. The position is one number, the same on all ranks and for any number of them.

    Args:
        dataset: the clips.
        batch_size: clips per batch of this rank; at most, with ``global_batch``.
        rank: the part of the global batch that this rank gets.
        world_size: number of ranks.
        workers: number of reader processes; 0 reads in this one. Batches do not depend on it.
        timeout: seconds to wait for a batch from a worker before raising an error; 0 waits forever.
        device: the device to copy each batch to while the one before it is in use (see ``copy_ahead``); None leaves
            batches in the host's memory.
        global_batch: clips of all ranks that make one step. Batches are then micro-batches: each step has
            ``division.accumulation`` of them. None gives every rank one batch of ``batch_size`` clips.

    Attributes:
        division: how a global batch is divided over ranks and micro-batches.

    Raises:
        NotEnoughClipsError: an epoch is smaller than one global batch.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        timeout: float = 0,
        device: torch.device | None = None,
        global_batch: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.division = BatchDivision(global_batch or batch_size * world_size, world_size, batch_size)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.timeout = timeout
        self.device = device
        self._given = 0
        if not len(self):
            size, remedy = (f"{batch_size} x {world_size} ranks", "data.batch_size")
            if global_batch is not None:
                size, remedy = f"{global_batch}", "--global_batch"
            raise NotEnoughClipsError(
                f"an epoch has {len(dataset.order)} clips, fewer than one global batch of {size}: set a smaller "
                f"{remedy}, or add data"
            )

    @property
    def global_batches(self) -> int:
        """Number of global batches given so far, over all epochs; one of which a part was given is not counted."""
        return self._given // self.division.accumulation

    @global_batches.setter
    def global_batches(self, number: int) -> None:
        self._given = number * self.division.accumulation

    @property
    def global_batches_per_epoch(self) -> int:
        """Global batches of an epoch. Clips that do not fill one are left out of the epoch."""
        return len(self.dataset.order) // self.division.global_batch

    def __len__(self) -> int:
        """Batches of this rank per epoch, as many on all ranks."""
        return self.global_batches_per_epoch * self.division.accumulation

    def __iter__(self) -> Iterator[ClipBatch]:
        self.global_batches = self.global_batches  # a global batch of which a part was given begins again
        batches = self._read_epoch()
        for batch in batches if self.device is None else copy_ahead(batches, self.device):
            self._given += 1
            yield batch

    def _read_epoch(self) -> Iterator[ClipBatch]:
        """Read the rest of the epoch, by worker processes if there are some."""
        epoch, start = divmod(self.global_batches, self.global_batches_per_epoch)
        loader = DataLoader(
            self.dataset,
            batch_sampler=_BatchSampler(self, epoch, start),
            num_workers=self.workers,
            # The platform's own default: TorchRL's import sets spawn, where each worker imports torch for seconds.
            multiprocessing_context=multiprocessing.get_all_start_methods()[0] if self.workers else None,
            collate_fn=collate_clips,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
            timeout=self.timeout if self.workers else 0,
            # By default, a DataLoader draws from the global generator, and a resumed run would differ.
            generator=torch.Generator().manual_seed(0),
        )
        if self.workers:
            atexit.unregister(kill_workers)
            atexit.register(kill_workers)
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (StoreError, FileNotFoundError) as error:
                raise type(error)(worker_message(error)) from error
            except ValueError as error:
                raise ValueError(worker_message(error)) from error
            except (RuntimeError, ConnectionError, EOFError) as error:
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                ignore_ended_workers()
                raise ChildProcessError(
                    f"a reader process ended unexpectedly ({error}). Often the memory is full: set fewer data.workers "
                    "or a smaller data.batch_size"
                ) from error
            yield batch

    def count_drawn(self) -> dict[str, int]:
        """Return the clips given so far by all ranks from each source of a mixture, by name; empty without mixture."""
        total: dict[str, int] = {}
        size, batches_per_epoch = self.division.global_batch, self.global_batches_per_epoch
        epochs, batches = divmod(self.global_batches, batches_per_epoch)
        for epoch in range(epochs + 1):
            first = epoch * len(self.dataset.order)
            last = first + size * (batches_per_epoch if epoch < epochs else batches)
            for name, count in count_drawn(self.dataset.order, first, last).items():
                total[name] = total.get(name, 0) + count
        return total

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader, and the properties of the data and batches for which it is valid."""
        return {
            "global_batches": self.global_batches,
            "global_batch_size": self.division.global_batch,
            "index_hash": self.dataset.order.index_hash,
            "order": [self.dataset.order.seed, self.dataset.order.span],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position. Raises ValueError if the data or the global batch size differ."""
        current = self.state_dict()
        for key, meaning in (
            ("global_batch_size", "clips of a global batch (--global_batch, or batch size x ranks)"),
            ("index_hash", "the shards or their weights"),
            ("order", "data.seed, or the span of a clip"),
        ):
            if state[key] != current[key]:
                raise ValueError(
                    f"cannot resume in the same order: {meaning} differ ({key} was {state[key]}, is {current[key]}). "
                    f"Use the same data and --global_batch {state['global_batch_size']} on any number of ranks, or "
                    "start a new run from the weights of this one."
                )
        self.global_batches = state["global_batches"]


class _BatchSampler(Sequence[list[tuple[int, int]]]):
    """The batches of one rank from global batch ``start`` to the end of the epoch, as (epoch, position) of clips."""

    def __init__(self, loader: ClipLoader, epoch: int, start: int) -> None:
        self.loader = loader
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return len(self.loader) - self.start * self.loader.division.accumulation

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        division = self.loader.division
        batch, part = divmod(index, division.accumulation)
        first = (self.start + batch) * division.global_batch
        return [(self.epoch, first + clip) for clip in division.computed_clips(self.loader.rank, part)]


class VideoDataModule(L.LightningDataModule):
    """Clips of shards for training and validation.

    Args:
        path: the shards: a folder, a tar, a pattern, or an fsspec address (s3://, gs://, https://). Of several, as a
            list, an epoch has every clip once; with weights, ``{data/a: 3, data/b: 1}``, three clips of four are from
            the first, and an epoch has as many clips as both together. Held-out clips are of all of them.
        clip_length: frames per clip.
        batch_size: clips per batch and rank; with a global batch (``vwm fit --global_batch``), the most clips that a
            rank computes at once.
        stride: distance in frames from one frame of a clip to the next.
        fields: the fields to read: frames, actions, rewards, state, terminated, latents; ``task`` is the number of the
            clip's data set in ``path``, from 0 on.
        workers: number of reader processes per rank.
        seed: seed of the shuffle.
        val_fraction: fraction of the episodes held out for validation, selected by a hash of their keys, so that
            adding data moves no episode from one split to the other.
        val_path: other shards to validate on instead.
        timeout: seconds to wait for a reader process; 0 waits forever.
        labeled_fraction: fraction of the training episodes whose actions are given. Clips of all others have actions 0
            and ``labeled`` False. Episodes are selected by a hash of their keys, so that a larger fraction includes
            those of every smaller one.
        frames_per_latent: k, where clips of ``1 + k n`` frames are for a tokenizer with k frames per latent and rewards
            are learned, which then need the actions up to the end of the next latent; see ``ClipBatch``. null takes
            that of encoded shards where latents are read, else 1.
        ends_share: share of the training clips that are drawn from the ends of episodes which terminated, so that a
            model learns when its world ends, at every place of a clip: the last frame lies at a random one and is
            repeated after it, see ``ClipBatch``. The others come as without it, and have an end at the last place only.
        rewards_share: share of the training clips that hold a rewarded action at a random place, each such action as
            often as the others, so that rare rewards are learned. Training begins with reading all rewards.
        labeled_share: share of the training clips that are of episodes whose actions are given, each as often as the
            others, so that few labels are learned from.
        buckets: weights of the training episodes by their duration or by a score.
        cache_gb: size in GB of a cache on disk of what is read from remote shards; null keeps none. Processes and runs
            share it.
        cache_folder: its folder; null takes one in the user's cache.
        stills: take episodes of one frame as clips, too: images, repeated to the length of a clip. A mixture of videos
            and images is a ``path`` with weights.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        path: dict[str, float] | list[str] | str,
        clip_length: int = 16,
        batch_size: int = 8,
        stride: int = 1,
        fields: list[str] = ["frames", "actions"],  # noqa: B006 (jsonargparse shows it; read only)
        workers: int = 2,
        seed: int = 0,
        val_fraction: float = 0.05,
        val_path: str | None = None,
        timeout: float = 300,
        labeled_fraction: float = 1.0,
        frames_per_latent: int | None = None,
        ends_share: float | None = None,
        rewards_share: float | None = None,
        labeled_share: float | None = None,
        buckets: EpisodeBuckets | None = None,
        cache_gb: float | None = None,
        cache_folder: str | None = None,
        stills: bool = False,
    ) -> None:
        super().__init__()
        check_positive(
            clip_length=clip_length, batch_size=batch_size, stride=stride, frames_per_latent=frames_per_latent
        )
        check_fraction(val_fraction=val_fraction, labeled_fraction=labeled_fraction)
        check_fraction(ends_share=ends_share, rewards_share=rewards_share, labeled_share=labeled_share)
        check_not_negative(workers=workers, timeout=timeout)
        self.path = path
        self.clip_length = clip_length
        self.batch_size = batch_size
        self.stride = stride
        self.fields = list(fields)
        self.workers = workers
        self.seed = seed
        self.val_fraction = val_fraction
        self.val_path = val_path
        self.timeout = timeout
        self.labeled_fraction = labeled_fraction
        self.frames_per_latent = frames_per_latent
        self.cache = None
        if cache_gb is not None:
            check_not_negative(cache_gb=cache_gb)
            self.cache = ShardCache(Path(cache_folder or user_cache() / "pieces"), int(cache_gb * 1e9))
        self.stills = stills
        self._train_loader: ClipLoader | None = None
        self.mixture = MixtureOptions(ends_share or None, buckets, rewards_share or None, labeled_share or None)
        self.global_batch: int | None = None
        self.processes_per_clip = 1
        """Consecutive processes that get the same clips."""

    def train_dataloader(self) -> ClipLoader:
        """The training batches of this rank."""
        split = "train" if self.val_path is None and self.val_fraction > 0 else "all"
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        loader = self._loader(ClipLoader, self.path, split, self.workers, self.labeled_fraction, self.mixture)
        loader.device = device if device.type == "cuda" else None
        self._train_loader = loader
        if not self.trainer or self.trainer.is_global_zero:
            self._note_ends(loader)
        return loader

    def _note_ends(self, loader: ClipLoader) -> None:
        """Say what a world learns of ends that lie within no clip."""
        if "terminated" not in self.fields or self.mixture.ends_share:
            return
        count = sum(bool(entry.terminated) for shard in loader.dataset.shards for entry in shard.episodes)
        if count:
            print(
                f"note: {count} episodes terminated, and clips hold such an end at their last place only: set "
                "data.ends_share=0.2 for a world in which agents learn (docs/scale.md)"
            )

    def teardown(self, stage: str) -> None:
        """Report how many clips were drawn from each part of a mixture."""
        drawn = self._train_loader.count_drawn() if stage == "fit" and self._train_loader is not None else {}
        if drawn and (not self.trainer or self.trainer.is_global_zero):
            print("clips drawn: " + "; ".join(f"{name}: {count:,}" for name, count in drawn.items()))

    def val_dataloader(self) -> list[ClipLoader] | ClipLoader:
        """The validation batches of this rank, in a fixed shuffled order; none if no episodes are held out."""
        if self.val_path is None and self.val_fraction == 0:
            return []
        path, split = (self.val_path, "all") if self.val_path is not None else (self.path, "val")
        path = path if isinstance(path, str) else list(path)  # every held-out clip once, whatever the weights
        try:
            return self._loader(_ValidationLoader, path, split, workers=0)
        except NotEnoughClipsError as error:
            if not self.trainer or self.trainer.is_global_zero:
                print(f"note: training without validation: {error}")
            return []

    def _loader(
        self,
        loader_class: type[ClipLoader],
        path: DataPath,
        split: str,
        workers: int,
        labeled_fraction: float = 1.0,
        mixture: MixtureOptions = UNMIXED,
    ) -> ClipLoader:
        dataset = make_clip_dataset(
            path,
            clip_length=self.clip_length,
            stride=self.stride,
            fields=self.fields,
            seed=self.seed,
            split=split,
            val_fraction=self.val_fraction,
            labeled_fraction=labeled_fraction,
            frames_per_latent=self.frames_per_latent,
            mixture=mixture,
            cache=self.cache,
            stills=self.stills,
        )
        return loader_class(
            dataset,
            self.batch_size,
            rank=self.trainer.global_rank // self.processes_per_clip if self.trainer else 0,
            world_size=self.trainer.world_size // self.processes_per_clip if self.trainer else 1,
            workers=workers,
            timeout=self.timeout,
            global_batch=self.global_batch,
        )


class _ValidationLoader(ClipLoader):
    """A loader that repeats the first epoch, for validation; its global batch may be all clips that are held out."""

    def __init__(self, dataset: ClipDataset, batch_size: int, **options: Any) -> None:
        if options.get("global_batch") is not None:
            options["global_batch"] = min(options["global_batch"], len(dataset.order))
        super().__init__(dataset, batch_size, **options)

    def __iter__(self) -> Iterator[ClipBatch]:
        self.global_batches = 0
        return super().__iter__()
