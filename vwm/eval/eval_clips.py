"""The clips that a world is judged by: the first of epoch 0 of a seeded order, held in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipDataset, collate_clips
from vwm.data.shard_reading import read_episode_metadata


@dataclass(frozen=True)
class EvalClips:
    """Some clips of a data set.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        actions: int64 [n, t] or float32 [n, t, a] as recorded, ``actions[:, i]`` leads from frame i to i+1; None
            where some clip has none.
        action_names: of discrete actions; empty where the recording does not say.
        index_hash: of the shards.
        available: clips in an epoch of the data.
        episodes: that the clips come from.
    """

    frames: Tensor
    actions: Tensor | None
    action_names: tuple[str, ...]
    index_hash: str
    available: int
    episodes: int

    def __len__(self) -> int:
        return len(self.frames)


def read_eval_clips(dataset: ClipDataset, clips: int, image_size: tuple[int, int]) -> EvalClips:
    """Read the first clips of epoch 0; all of them where there are fewer.

    Args:
        dataset: as ``open_clips`` gives it.
        clips: how many to read.
        image_size: (height, width) that the world needs, in pixels.

    Raises:
        ValueError: frames of another size.
    """
    count = min(clips, len(dataset.order))
    addresses = [dataset.order.address(0, i) for i in range(count)]
    for address in addresses:
        _check_frame_size(dataset, address, image_size)
    read = [dataset.read(a) for a in tqdm(addresses, desc="read clips", unit="clip", disable=None)]
    if any("actions" not in clip for clip in read):
        read = [{name: value for name, value in clip.items() if name != "actions"} for clip in read]
    batch = collate_clips(read)
    assert batch.frames is not None  # a clip without frames is an error where it is read
    return EvalClips(
        frames=batch.frames,
        actions=batch.actions,
        action_names=_action_names(dataset, addresses[0]),
        index_hash=dataset.order.index_hash,
        available=len(dataset.order),
        episodes=len({(a.shard, a.episode) for a in addresses}),
    )


def _check_frame_size(dataset: ClipDataset, address: ClipAddress, image_size: tuple[int, int]) -> None:
    entry = dataset.shards[address.shard].episodes[address.episode]
    if (entry.height, entry.width) != tuple(image_size):
        raise ValueError(
            f"the world has frames of {image_size[0]}x{image_size[1]} pixels, but episode {entry.key!r} of "
            f"{dataset.paths[address.shard]} has {entry.height}x{entry.width} (height x width): record or ingest the "
            f"data at the world's size"
        )


def _action_names(dataset: ClipDataset, address: ClipAddress) -> tuple[str, ...]:
    """What the recording calls its discrete actions, from the facts stored with one of its episodes."""
    entry = dataset.shards[address.shard].episodes[address.episode]
    names = read_episode_metadata(dataset.paths[address.shard], entry).get("action_names") or ()
    return tuple(map(str, names))
