"""Clips of a folder of shards, and the split of its episodes, for readers that do not import Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vwm.data.clip_order import ClipOrder, NotEnoughClipsError
from vwm.data.clips import ClipDataset
from vwm.data.episode_selection import key_hash, split_group
from vwm.data.shard_index import ShardIndex, list_shards, load_shard_index


def make_clip_dataset(
    path: str,
    clip_length: int,
    stride: int = 1,
    fields: Sequence[str] = ("frames", "actions"),
    seed: int = 0,
    shuffle: bool = True,
    split: str = "all",
    val_fraction: float = 0.05,
    labeled_fraction: float = 1.0,
    frames_per_latent: int | None = None,
) -> ClipDataset:
    """Make the clip dataset of a folder of shards.

    Args:
        path: the shards; see ``vwm.data.datamodule.VideoDataModule``.
        clip_length, stride, fields: see ``ClipDataset``.
        seed, shuffle: see ``ClipOrder``.
        split: ``all`` episodes, the ``train`` split or the held-out ``val`` split.
        val_fraction: fraction of the episodes that is held out.
        labeled_fraction: fraction of the episodes whose actions are given.
        frames_per_latent: see ``vwm.data.datamodule.VideoDataModule``.

    Raises:
        NotEnoughClipsError: the split has no episode, or none that is long enough for a clip.
    """
    paths = list_shards(path)
    indices = [load_shard_index(p) for p in paths]
    shards = [_select_split(index, split, val_fraction) for index in indices]
    if split != "all" and not any(shard.episodes for shard in shards):
        raise NotEnoughClipsError(
            f"{path}: none of the {sum(len(index.episodes) for index in indices)} episodes is in the {split} split "
            f"(val_fraction {val_fraction:g}, selected by a hash of their keys): use all of them (vwm eval without "
            f"--part), hold out more (vwm fit --data.init_args.val_fraction 0.3), or add videos"
        )
    encoded = _encoded_frames_per_latent(path, indices) if "latents" in fields else 1
    if frames_per_latent not in (None, encoded) and "latents" in fields:
        raise ValueError(
            f"frames_per_latent={frames_per_latent}, but the latents in {path} hold {encoded} frames: set {encoded}"
        )
    # Latents are aligned with the episodes' starts; pixels can be cut anywhere.
    order = ClipOrder(shards, clip_length, stride=stride, seed=seed, shuffle=shuffle, frames_per_latent=encoded)
    return ClipDataset(
        paths=paths,
        shards=shards,
        order=order,
        clip_length=clip_length,
        stride=stride,
        fields=fields,
        labeled_fraction=labeled_fraction,
        frames_per_latent=frames_per_latent or encoded,
    )


def _encoded_frames_per_latent(path: str, shards: Sequence[ShardIndex]) -> int:
    """Return the frames of a latent, which must be the same in all episodes."""
    found = {entry.frames_per_latent for shard in shards for entry in shard.episodes if "latents.npy" in entry.members}
    if len(found) > 1:
        raise ValueError(
            f"{path}: latents of {' and '.join(map(str, sorted(found)))} frames: encode all shards with one tokenizer"
        )
    return found.pop() if found else 1


def _select_split(shard: ShardIndex, split: str, val_fraction: float) -> ShardIndex:
    if split == "all":
        return shard
    if split not in ("train", "val"):
        raise ValueError(f"split={split!r} must be 'all', 'train' or 'val'")
    return replace(
        shard,
        episodes=tuple(e for e in shard.episodes if (key_hash(split_group(e.key)) < val_fraction) == (split == "val")),
    )
