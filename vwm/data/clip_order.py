"""The clip order: a pure function from a position in an epoch to a clip.

``(seed, epoch, position, index) -> (shard, episode, start frame, augmentation seed)``. Batches depend on nothing else,
so a run resumes in constant time from any step, and the global batches are the same for any number of workers, ranks
and nodes.

An episode of T frames is cut into ``T // span`` clips that do not overlap, with another offset in every epoch. The
order of the shards is shuffled, and clips are shuffled within blocks of consecutive shards, so that reads stay local.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vwm.data.shard_index import ShardIndex


class ClipAddress(NamedTuple):
    """The shard, episode and first frame of a clip, and the seed of its data augmentation."""

    shard: int
    episode: int
    start: int
    seed: int


class NotEnoughClipsError(ValueError):
    """The data is readable, and too small for a clip or a batch."""


class ClipOrder:
    """The order of all clips of a data set in each epoch.

    Args:
        shards: the indices of the shards, sorted by name.
        clip_length: frames per clip, t.
        stride: distance in frames from one frame of a clip to the next.
        seed: seed of the shuffle.
        shuffle: False keeps the order of the shards, and starts every episode at frame 0.
        shards_per_block: number of shards whose clips are shuffled together.
        frames_per_latent: k above 1 cuts episodes into whole latents of k frames (the first holds one): clips of
            ``1 + k n`` frames start at multiples of k.
        chosen: bool [episodes] of each shard, the episodes whose clips are taken; None takes all.
        only_ends: take one clip of each episode, which holds its last frame at a random place and runs past it; where
            nothing is shuffled, at the clip's last place. Episodes may be shorter than a clip.
        events: int64 [events] of each episode of each shard, frames (latents, if k > 1): take one clip for each, which
            holds it at a random place. Episodes shorter than a clip have none.
        branch: numbers that make the order independent of others with the same seed; ``MixedOrder`` sets them.
        stills: take an episode of one frame as a clip, too, whatever the length of clips.

    Attributes:
        span: frames of an episode that a clip covers, ``(clip_length - 1) * stride + 1``; latents, if k > 1.
        index_hash: hash of the shards and their episodes: equal orders require equal data.

    Raises:
        ValueError: no episode is long enough for one clip, or clips do not consist of whole latents.
    """

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        clip_length: int,
        stride: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        shards_per_block: int = 16,
        frames_per_latent: int = 1,
        chosen: Sequence[NDArray[np.bool_]] | None = None,
        only_ends: bool = False,
        events: Sequence[Sequence[NDArray[np.int64]]] | None = None,
        branch: tuple[int, ...] = (),
        stills: bool = False,
    ) -> None:
        self.unit = frames_per_latent
        self.span = _count_units(clip_length, stride, self.unit)
        self.seed = seed
        self.shuffle = shuffle
        self.shards_per_block = shards_per_block
        # Of T frames, the first and then k at a time make 1 + (T - 1) // k latents.
        self._lengths = [np.array([(e.frames - 1) // self.unit + 1 for e in s.episodes], np.int64) for s in shards]
        self._counts = [lengths // self.span for lengths in self._lengths]
        if stills:
            self._counts = [
                np.maximum(counts, lengths == 1) for counts, lengths in zip(self._counts, self._lengths, strict=True)
            ]
        self._events = events
        if events is not None:
            self._counts = [
                np.array([len(p) for p in positions], np.int64) * (counts > 0)
                for positions, counts in zip(events, self._counts, strict=True)
            ]
        if only_ends:
            self._counts = [np.ones_like(counts) for counts in self._counts]
        if chosen is not None:
            self._counts = [counts * mask for counts, mask in zip(self._counts, chosen, strict=True)]
        kept = [
            [e for i, e in enumerate(shard.episodes) if chosen is None or chosen[number][i]]
            for number, shard in enumerate(shards)
        ]
        self._only_ends = only_ends
        # A block of shards that hold none of the chosen clips would shuffle few clips.
        self._with_clips = None if chosen is None else np.array([i for i, c in enumerate(self._counts) if c.any()], int)
        self._branch = branch
        self._shard_counts = np.array([c.sum() for c in self._counts], dtype=np.int64)
        if not len(self):
            frames = [episode.frames for shard in kept for episode in shard]
            raise NotEnoughClipsError(
                f"no episode is long enough: a clip of {clip_length} frames at stride {stride} spans "
                f"{(clip_length - 1) * stride + 1} frames, the longest of {len(frames)} episodes has "
                f"{max(frames, default=0)}. Set a smaller clip_length or stride, or ingest with a longer clip length."
            )
        digest = hashlib.blake2b(b"stills;" if stills else b"", digest_size=8)
        for positions in events or ():
            digest.update(f"{[p.tolist() for p in positions]};".encode())
        for shard, episodes in zip(shards, kept, strict=True):
            digest.update(f"{shard.tar}:{shard.hash}:{[e.key for e in episodes]};".encode())
        self.index_hash = digest.hexdigest()

    def __len__(self) -> int:
        """Number of clips in an epoch, the same for all epochs."""
        return int(self._shard_counts.sum())

    def address(self, epoch: int, position: int) -> ClipAddress:
        """Return the clip at a position of an epoch. Raises IndexError past the end."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside an epoch of {len(self)} clips")
        shards, ends = self._blocks(epoch)
        block = int(np.searchsorted(ends, position, side="right"))
        first = int(ends[block - 1]) if block else 0
        members = shards[block * self.shards_per_block : (block + 1) * self.shards_per_block]
        shard, episode, clip = self._block_clips(epoch, block, tuple(int(m) for m in members))[position - first]
        seed = self._rng(2, epoch, position).integers(1 << 31)
        first_unit = self._first_unit(epoch, int(shard), int(episode), int(clip))
        return ClipAddress(int(shard), int(episode), first_unit * self.unit, int(seed))

    def _first_unit(self, epoch: int, shard: int, episode: int, clip: int) -> int:
        """The frame, or latent, that a clip of an episode begins with."""
        length = int(self._lengths[shard][episode])
        if self._events is not None:
            before = (
                int(self._rng(3, epoch, shard, episode, clip).integers(self.span)) if self.shuffle else self.span // 2
            )
            return min(max(int(self._events[shard][episode][clip]) - before, 0), length - self.span)
        if self._only_ends:
            places = min(self.span, length)
            place = int(self._rng(3, epoch, shard, episode).integers(places)) if self.shuffle else places - 1
            return length - 1 - place
        slack = max(length - int(self._counts[shard][episode]) * self.span, 0)
        offset = int(self._rng(3, epoch, shard, episode).integers(slack + 1)) if self.shuffle else 0
        return offset + clip * self.span

    def _rng(self, *numbers: int) -> np.random.Generator:
        seeds = np.random.SeedSequence((self.seed, *map(int, numbers)), spawn_key=self._branch)
        return np.random.Generator(np.random.Philox(seeds))

    @lru_cache(maxsize=2)  # noqa: B019 (the order lives as long as its loader)
    def _blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the shards, and the position at which each block of them ends."""
        shards = np.arange(len(self._shard_counts)) if self._with_clips is None else self._with_clips
        starts = np.arange(0, len(shards), self.shards_per_block)
        shards = self._rng(0, epoch).permutation(shards) if self.shuffle else shards
        return shards, np.add.reduceat(self._shard_counts[shards], starts).cumsum()

    @lru_cache(maxsize=4)  # noqa: B019
    def _block_clips(self, epoch: int, block: int, members: tuple[int, ...]) -> NDArray[np.int64]:
        """The shuffled clips of a block, int64 [clips, 3]: (shard, episode, number of the clip in the episode)."""
        rows = []
        for shard in members:
            counts = self._counts[shard]
            episode = np.repeat(np.arange(len(counts)), counts)
            clip = np.arange(len(episode)) - np.repeat(counts.cumsum() - counts, counts)
            rows.append(np.stack((np.full_like(episode, shard), episode, clip), axis=1))
        clips = np.concatenate(rows)
        return self._rng(1, epoch, block).permutation(clips) if self.shuffle else clips


def _count_units(clip_length: int, stride: int, frames_per_latent: int) -> int:
    """Return the frames that a clip covers, or its latents where they hold several frames."""
    if frames_per_latent == 1:
        return (clip_length - 1) * stride + 1
    check_whole_latents(clip_length, stride, frames_per_latent)
    return 1 + (clip_length - 1) // frames_per_latent


def check_whole_latents(clip_length: int, stride: int, frames_per_latent: int) -> None:
    """Raise ValueError unless clips consist of one frame and whole latents of k frames, without gaps."""
    if (clip_length - 1) % frames_per_latent or (stride > 1 and frames_per_latent > 1):
        below = (clip_length - 1) // frames_per_latent * frames_per_latent + 1
        raise ValueError(
            f"clip_length={clip_length} at stride={stride}: latents of {frames_per_latent} frames need clips of "
            f"1 + {frames_per_latent} n frames at stride 1, such as {below} or {below + frames_per_latent}"
        )
