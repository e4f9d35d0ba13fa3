"""Clips of a folder of shards, and the split of its episodes, for readers that do not import Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vwm.data.clip_order import ClipOrder, NotEnoughClipsError
from vwm.data.clips import ClipDataset
from vwm.data.data_set_checks import check_same_kind
from vwm.data.episode_selection import key_hash, split_group
from vwm.data.mixtures import UNMIXED, DataPath, MixtureOptions, list_data_sets, make_order
from vwm.data.shard_cache import ShardCache
from vwm.data.shard_index import ShardIndex, load_shard_indices


def make_clip_dataset(
    path: DataPath,
    clip_length: int,
    stride: int = 1,
    fields: Sequence[str] = ("frames", "actions"),
    seed: int = 0,
    shuffle: bool = True,
    split: str = "all",
    val_fraction: float = 0.05,
    labeled_fraction: float = 1.0,
    frames_per_latent: int | None = None,
    mixture: MixtureOptions = UNMIXED,
    cache: ShardCache | None = None,
    stills: bool = False,
) -> ClipDataset:
    """Make the clip dataset of a folder of shards, or of several.

    Args:
        path: the shards of one data set or of several, by weight; see ``vwm.data.datamodule.VideoDataModule``.
        clip_length, stride, fields: see ``ClipDataset``.
        seed, shuffle: see ``ClipOrder``.
        split: ``all`` episodes, the ``train`` split or the held-out ``val`` split.
        val_fraction: fraction of the episodes that is held out.
        labeled_fraction: fraction of the episodes whose actions are given.
        frames_per_latent: see ``vwm.data.datamodule.VideoDataModule``.
        mixture: what is drawn more often.
        cache: keeps bytes of remote shards on disk.
        stills: see ``ClipDataset``.

    Raises:
        ValueError: data sets differ in size, actions or frame rate.
        NotEnoughClipsError: the split has no episode, or none that is long enough for a clip.
    """
    data_sets = list_data_sets(path)
    paths = [shard for data_set in data_sets for shard in data_set.shards]
    indices = load_shard_indices(paths)
    name = ", ".join(data_set.name for data_set in data_sets)
    check_same_kind(data_sets, indices, fields)
    shards = [_select_split(index, split, val_fraction) for index in indices]
    if split != "all" and not any(shard.episodes for shard in shards):
        raise NotEnoughClipsError(
            f"{name}: none of the {sum(len(index.episodes) for index in indices)} episodes is in the {split} split "
            f"(val_fraction {val_fraction:g}, selected by a hash of their keys): use all of them (vwm eval without "
            f"--part), hold out more (vwm fit --data.init_args.val_fraction 0.3), or add videos"
        )
    encoded = _encoded_frames_per_latent(name, indices) if "latents" in fields else 1
    if frames_per_latent not in (None, encoded) and "latents" in fields:
        raise ValueError(
            f"frames_per_latent={frames_per_latent}, but the latents in {name} hold {encoded} frames: set {encoded}"
        )
    # Latents are aligned with the episodes' starts; pixels can be cut anywhere.
    make = partial(
        ClipOrder,
        clip_length=clip_length,
        stride=stride,
        seed=seed,
        shuffle=shuffle,
        frames_per_latent=encoded,
        stills=stills,
    )
    order = make_order(data_sets, shards, mixture, make, labeled_fraction)
    return ClipDataset(
        paths=paths,
        shards=shards,
        order=order,
        clip_length=clip_length,
        stride=stride,
        fields=fields,
        labeled_fraction=labeled_fraction,
        frames_per_latent=frames_per_latent or encoded,
        cache=cache,
        stills=stills,
        tasks=[task for task, data_set in enumerate(data_sets) for _ in data_set.shards],
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
