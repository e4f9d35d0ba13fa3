"""Read clips from shards and collate them into batches."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vwm.core.remote_files import is_remote
from vwm.data.clip_order import ClipAddress, check_whole_latents
from vwm.data.episode_selection import find_labeled
from vwm.data.frame_reading import read_frames
from vwm.data.mixed_order import ClipSequence
from vwm.data.remote_blocks import know_shard
from vwm.data.shard_cache import ShardCache
from vwm.data.shard_index import ShardIndex
from vwm.data.shard_reading import read_array_rows, read_episode_metadata

CLIP_FIELDS = ("frames", "actions", "rewards", "state", "latents", "latents_std", "terminated", "task")
MAX_READERS = 16
"""Clips of a batch that a process reads from a store at the same time."""


@dataclass
class ClipBatch:
    """A batch of clips. Fields that the data lack or that were not requested are None.

    Where a latent holds k frames, a clip of t = 1 + k n frames has t' = 1 + n latents, each with the k actions that
    follow its last frame: latent i ends with frame k i of the clip, and ``actions[:, k i : k (i + 1)]`` lead to the
    next latent. ``actions``, ``rewards`` and ``terminated`` then have k t' entries.

    A clip of an end (``data.ends_share``) may run past it: its frames, latents and states repeat the last ones. After
    the end of an episode actions are 0 and rewards NaN, which count in no loss of outcomes or policies.

    Attributes:
        frames: uint8 [b, t, h, w, 3].
        actions: int64 [b, t] or float32 [b, t, a]; ``actions[:, i]`` leads from frame i to i+1.
        rewards: float32 [b, t].
        state: float32 [b, t, s], state of the environment.
        latents: int64 [b, t', ...] tokens or float32 [b, t', ...] latents of an encoded data set.
        latents_std: float32 [b, t', ...], standard deviations of the latents if the posterior was stored.
        seed: int64 [b], seed of the data augmentation.
        terminated: bool [b, t], True if the action of this step terminated the environment: only possible at the last
            frame of an episode.
        labeled: bool [b], whether the actions of a clip are known (unknown ones are 0); None if all are.
        still: bool [b], whether a clip is an image, repeated; None where episodes of one frame are no clips.
        task: int64 [b], which of the mixed data sets each clip is from, counted from 0.
        known_parts: bool [b, p], whether each part of a clip's composite actions is known; None if all are.
    """

    frames: Tensor = None  # type: ignore[assignment]  # absent only if pixels were not requested
    actions: Tensor | None = None
    rewards: Tensor | None = None
    state: Tensor | None = None
    latents: Tensor | None = None
    latents_std: Tensor | None = None
    seed: Tensor | None = None
    terminated: Tensor | None = None
    labeled: Tensor | None = None
    known_parts: Tensor | None = None
    still: Tensor | None = None
    task: Tensor | None = None

    def pin_memory(self) -> Self:
        """Return the batch in pinned memory; torch's ``DataLoader`` calls this, and pins no dataclass by itself."""
        return type(self)(**{name: x.pin_memory() for name, x in vars(self).items() if x is not None})


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of shards, indexed by ``(epoch, position)``.

    Args:
        paths: the shards, local paths or fsspec addresses.
        shards: their indices.
        order: maps (epoch, position) to the address of a clip.
        clip_length: frames per clip, t.
        stride: distance in frames from one frame of a clip to the next.
        fields: the fields to read. Fields that an episode lacks are left out of its clips. Where some episodes have
            actions and others have none, clips of the latter have actions 0 and ``labeled`` False.
        labeled_fraction: fraction of the episodes whose actions are given; the actions of all others are 0. Episodes
            are selected by a hash of their keys, so that a larger fraction includes those of every smaller one.
        frames_per_latent: k; see ``ClipBatch``.
        cache: keeps bytes of remote shards on disk; None keeps none.
        stills: repeat the frame of an episode of one frame, an image, to a clip; see ``ClipBatch.still``. The order
            must be made with it, too.
        tasks: the field ``task`` of the clips of each shard; None for 0.

    Raises:
        ValueError: an unknown field; stills with other fields than frames; clips that do not consist of whole latents;
            actions, rewards or terminated with a stride above 1, where an action would not lead to the next frame of
            the clip; or a fraction outside [0, 1].
    """

    def __init__(
        self,
        paths: Sequence[str],
        shards: Sequence[ShardIndex],
        order: ClipSequence,
        clip_length: int,
        stride: int = 1,
        fields: Sequence[str] = ("frames", "actions"),
        labeled_fraction: float = 1.0,
        frames_per_latent: int = 1,
        cache: ShardCache | None = None,
        stills: bool = False,
        tasks: Sequence[int] | None = None,
    ) -> None:
        unknown = set(fields) - set(CLIP_FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}; choose from {', '.join(CLIP_FIELDS)}")
        if stride > 1 and {"actions", "rewards", "terminated"} & set(fields):
            raise ValueError(
                f"stride={stride} skips frames, so actions and rewards would not lead to the next frame: set "
                f"fields=[frames], or record with a frame skip (vwm record --frame-skip {stride})"
            )
        if stills and set(fields) != {"frames"}:
            raise ValueError(
                "stills=true mixes images with videos, and images have no "
                f"{', '.join(sorted(set(fields) - {'frames'}))}: set fields=[frames]"
            )
        check_whole_latents(clip_length, stride, frames_per_latent)
        if not 0 <= labeled_fraction <= 1:
            raise ValueError(f"labeled_fraction must be between 0 and 1, got {labeled_fraction}")
        self.paths = list(paths)
        self.shards = shards
        self.order = order
        self.clip_length = clip_length
        self.stride = stride
        self.frames_per_latent = frames_per_latent
        self.fields = tuple(fields)
        self.cache = cache
        self.stills = stills
        self.tasks = [0] * len(self.paths) if tasks is None else list(tasks)
        self._unlabeled_actions = self._find_unlabeled_actions() if "actions" in fields else None
        parts = [entry.known_parts for shard in shards for entry in shard.episodes]
        self._num_parts = max(map(len, parts), default=0) if not all(map(all, parts)) else 0
        is_partly_labeled = labeled_fraction < 1 or self._unlabeled_actions is not None
        self._labeled = find_labeled(shards, labeled_fraction) if is_partly_labeled else None

    def __len__(self) -> int:
        """Return the number of clips in an epoch."""
        return len(self.order)

    def __getitem__(self, position: int | tuple[int, int]) -> dict[str, Any]:
        """Read the clip at a position of the first epoch, or at (epoch, position)."""
        epoch, place = (0, position) if isinstance(position, int) else position
        if isinstance(position, int) and not 0 <= position < len(self.order):
            raise IndexError(f"there are {len(self.order)} clips, and none at {position}")
        return self.read(self.order.address(epoch, place))

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read the clips of a batch; those of remote shards at the same time, since each waits for the store."""
        if len(positions) < 2 or not any(map(is_remote, self.paths)):
            return [self[position] for position in positions]
        with ThreadPoolExecutor(min(len(positions), MAX_READERS)) as readers:
            return list(readers.map(self.__getitem__, positions))

    def read(self, address: ClipAddress) -> dict[str, Any]:
        """Read the fields of one clip, each an array [t, ...], and its ``seed``."""
        path, shard = self.paths[address.shard], self.shards[address.shard]
        entry = shard.episodes[address.episode]
        if is_remote(path):  # all reads are of the state that the index describes, in spawned processes, too
            know_shard(path, shard.size, shard.tag, shard.block_sums, self.cache)
        stop = address.start + (self.clip_length - 1) * self.stride + 1
        end = min(stop, entry.frames)  # a clip of an end runs past it
        clip: dict[str, Any] = {"seed": np.int64(address.seed)}
        if self.stills:
            clip["still"] = np.bool_(entry.frames == 1)
            if clip["still"]:
                frame = read_frames(path, entry, range(1))
                return clip | {"frames": np.broadcast_to(frame, (self.clip_length, *frame.shape[1:]))}
        steps = self.clip_length + self.frames_per_latent - 1
        for field in self.fields:
            if field == "frames":
                frames = read_frames(path, entry, range(address.start, end, self.stride))
                clip[field] = _pad_rows(frames, self.clip_length)
            elif field == "task":
                clip[field] = np.int64(self.tasks[address.shard])
            elif field.startswith("latents") and self.frames_per_latent > 1 and f"{field}.npy" in entry.members:
                first, last = (frame // self.frames_per_latent for frame in (address.start, end - 1))
                latents = read_array_rows(path, entry, field, first, last + 1)
                clip[field] = _pad_rows(latents, 1 + (self.clip_length - 1) // self.frames_per_latent)
            elif f"{field}.npy" in entry.members and field in ("actions", "rewards", "terminated"):
                last = min(stop + self.frames_per_latent - 1, entry.frames)
                rows = read_array_rows(path, entry, field, address.start, last)[:: self.stride]
                clip[field] = _pad_rows(rows, steps, np.nan if field == "rewards" else 0)
            elif f"{field}.npy" in entry.members:
                rows = read_array_rows(path, entry, field, address.start, end)[:: self.stride]
                clip[field] = _pad_rows(rows, self.clip_length)
            elif field == "actions" and self._unlabeled_actions is not None:
                clip[field] = self._unlabeled_actions
            elif field == "terminated" and "terminated" in (meta := read_episode_metadata(path, entry)):
                clip[field] = np.zeros(steps, bool)
                last_step = entry.frames - 1 - address.start
                clip[field][last_step : last_step + 1] = meta["terminated"]
        if self._labeled is not None:
            clip["labeled"] = self._labeled[address.shard][address.episode]
            if "actions" in clip and not clip["labeled"]:
                clip["actions"] = np.zeros_like(clip["actions"])
        if self._num_parts and "actions" in self.fields:
            clip["known_parts"] = np.array(entry.known_parts or (False,) * self._num_parts)
        return clip

    def _find_unlabeled_actions(self) -> NDArray[Any] | None:
        """Return the actions of a clip without labels, [t, ...]; None where no episodes or all of them are labeled."""
        entries = [
            (path, entry) for path, shard in zip(self.paths, self.shards, strict=True) for entry in shard.episodes
        ]
        labeled = [(path, entry) for path, entry in entries if "actions.npy" in entry.members]
        if not 0 < len(labeled) < len(entries):
            return None
        example = read_array_rows(*labeled[0], "actions", 0, 1)
        return np.zeros((self.clip_length + self.frames_per_latent - 1, *example.shape[1:]), example.dtype)


def _pad_rows(rows: NDArray[Any], count: int, value: float | None = None) -> NDArray[Any]:
    """Append rows of a value, or the last row again, up to a number of rows."""
    if len(rows) == count:
        return rows
    repeated = rows[-1:] if value is None else np.full_like(rows[-1:], value)
    return np.concatenate((rows, np.repeat(repeated, count - len(rows), axis=0)))


def collate_clips(clips: Sequence[dict[str, Any]]) -> ClipBatch:
    """Stack clips into a batch.

    Raises:
        ValueError: the clips differ in shape or in their fields.
    """
    batch: dict[str, Tensor] = {}
    for field in {field: None for clip in clips for field in clip}:
        arrays = [clip.get(field) for clip in clips]
        shapes = {None if a is None else a.shape for a in arrays}
        if len(shapes) > 1:
            raise ValueError(
                f"clips of one batch differ in {field}: {sorted(map(str, shapes))}. Ingest or record them at one "
                f"size, or leave {field} out of data.fields"
            )
        stacked = np.stack([a for a in arrays if a is not None])
        if field in ("actions", "latents") and stacked.dtype.kind in "iu":
            stacked = stacked.astype(np.int64)
        if field.startswith("latents") and stacked.dtype == np.float16:
            stacked = stacked.astype(np.float32)
        batch[field] = torch.from_numpy(stacked)
    return ClipBatch(**batch)
