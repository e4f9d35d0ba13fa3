"""The clips that a world is evaluated on: the first ones of epoch 0 of a seeded order, in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vwm.core.command_output import progress_bar
from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipDataset, collate_clips
from vwm.data.shard_reading import read_episode_metadata


@dataclass(frozen=True)
class EvalClips:
    """Clips of a data set.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        actions: int64 [n, t] or float32 [n, t, a] as recorded, ``actions[:, i]`` leads from frame i to i+1; None
            unless all clips have them.
        action_names: names of discrete actions; empty if the recording has none.
        index_hash: hash of the shards.
        num_available: number of clips in an epoch of the data.
        num_episodes: number of episodes that the clips come from.
    """

    frames: Tensor
    actions: Tensor | None
    action_names: tuple[str, ...]
    index_hash: str
    num_available: int
    num_episodes: int

    def __len__(self) -> int:
        return len(self.frames)


def read_eval_clips(dataset: ClipDataset, clips: int, image_size: tuple[int, int]) -> EvalClips:
    """Read the first clips of epoch 0; all of them if there are fewer.

    Args:
        dataset: as ``open_clips`` returns it.
        clips: number of clips.
        image_size: (height, width) of the world, in pixels.

    Raises:
        ValueError: frames of another size.
    """
    count = min(clips, len(dataset.order))
    addresses = [dataset.order.address(0, i) for i in range(count)]
    for address in addresses:
        _check_frame_size(dataset, address, image_size)
    read = [dataset.read(a) for a in progress_bar(addresses, desc="read clips", unit="clip")]
    if any("actions" not in clip for clip in read):
        read = [{name: value for name, value in clip.items() if name != "actions"} for clip in read]
    batch = collate_clips(read)
    assert batch.frames is not None  # reading a clip without frames raises an error
    return EvalClips(
        frames=batch.frames,
        actions=batch.actions,
        action_names=_action_names(dataset, addresses[0]),
        index_hash=dataset.order.index_hash,
        num_available=len(dataset.order),
        num_episodes=len({(a.shard, a.episode) for a in addresses}),
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
    """Read the names of discrete actions from the metadata of an episode."""
    entry = dataset.shards[address.shard].episodes[address.episode]
    names = read_episode_metadata(dataset.paths[address.shard], entry).get("action_names") or ()
    return tuple(map(str, names))
