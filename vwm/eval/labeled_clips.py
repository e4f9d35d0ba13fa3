"""Labeled clips for probes, in three parts (training, validation, test) that share no episode.

Legend: n clips, t time, h w pixels, o numbers to predict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.core.command_output import progress_bar
from vwm.data.clip_order import ClipOrder
from vwm.data.clips import ClipDataset
from vwm.data.episode_selection import key_hash
from vwm.data.shard_index import ShardIndex, list_shards, load_shard_index
from vwm.data.shard_reading import read_episode_metadata

LabelKind = Literal["numbers", "classes"]

SPLITS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.15, 0.25
MIN_DISTINCT_VALUES = 5
"""Distinct values that a number must take in the training clips: with fewer it is a flag, which R² does not suit."""
MIN_VARIANCE_RATIO = 0.05
"""Smallest variance of a number in the test clips divided by that in the training clips: R² divides by the former."""


@dataclass(frozen=True)
class LabeledSplit:
    """Clips of one part.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        labels: float64 [n, o], standardized by the training part; or int64 [n], classes.
        episodes: int64 [n], index of each clip's episode.
        available: number of clips in the part's episodes.
    """

    frames: Tensor
    labels: Tensor
    episodes: Tensor
    available: int

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class LabeledClips:
    """Three parts of a data set.

    Attributes:
        train, val, test: the parts for fitting probes, for selecting settings, and for the final score.
        kind: kind of the labels.
        names: names of the numbers, or of the classes.
        excluded: numbers that are not predicted, with the reason.
        index_hash: hash of the shards of each part.
    """

    train: LabeledSplit
    val: LabeledSplit
    test: LabeledSplit
    kind: LabelKind
    names: tuple[str, ...]
    excluded: dict[str, str]
    index_hash: dict[str, str]

    @property
    def num_outputs(self) -> int:
        """Number of predicted numbers, or of classes."""
        return len(self.names)


@dataclass(frozen=True)
class _UnprocessedSplit:
    """Clips with their raw labels, one entry of ``values`` per clip."""

    frames: Tensor
    values: list[Any]
    names: list[str] | None
    episodes: Tensor
    available: int


@dataclass(frozen=True)
class LabeledClipsConfig:
    """Labels and clips of a data set.

    Attributes:
        label: a key of the episodes' JSON to predict: strings, integers and booleans are classes, other numbers are
            regression targets. null: the recorded state (vwm record --state) at the last frame of a clip.
        state_names: numbers of the state to keep, e.g. '[ball_x, ball_y]'; null keeps all that vary.
        test_data: other shards for the test part.
        stride: frames from one frame of a clip to the next.
        clips: largest number of training clips; a quarter as many are for validation.
        test_clips: largest number of test clips.
    """

    label: str | None = None
    state_names: list[str] | None = None
    test_data: str | None = None
    stride: int = 1
    clips: int = 1024
    test_clips: int = 512

    def __post_init__(self) -> None:
        check_positive(stride=self.stride, clips=self.clips, test_clips=self.test_clips)


def read_labeled_clips(
    data: str, clip_length: int, config: LabeledClipsConfig = LabeledClipsConfig(), seed: int = 0
) -> LabeledClips:
    """Read clips at random starts with their labels.

    Episodes are assigned to the parts by a hash of their keys and the seed, so that no episode is in two parts: clips
    of one episode are similar.

    Args:
        data: shards, see ``vwm.data.shard_index.list_shards``.
        clip_length: t, frames per clip.
        config: labels, and number of clips.
        seed: seed of the split, and of the clips in each part.

    Raises:
        ValueError: too few episodes, a missing label, or a class that is missing in the training part.
    """
    label, test_data = config.label, config.test_data
    assigned = split_episodes(_episode_keys(data), test_data is None, seed)
    limits = {"train": config.clips, "val": max(1, config.clips // 4), "test": config.test_clips}
    raw, hashes = {}, {}
    for part in SPLITS:
        where = test_data if part == "test" and test_data is not None else data
        chosen = None if part == "test" and test_data is not None else assigned[part]
        fields = ("frames",) if label else ("frames", "state")
        dataset = _open_dataset(where, chosen, clip_length, config.stride, fields, seed)
        raw[part] = _read_split(dataset, limits[part], label, part)
        hashes[part] = dataset.order.index_hash
    values = [value for part in raw.values() for value in part.values]
    make = (
        _class_labels
        if label is not None and not any(isinstance(v, float | list) for v in values)
        else _regression_labels
    )
    labels, names, excluded = make(raw, label or "state", config.state_names or ())
    parts = {
        part: LabeledSplit(found.frames, labels[part], found.episodes, found.available) for part, found in raw.items()
    }
    kind: LabelKind = "classes" if make is _class_labels else "numbers"
    return LabeledClips(**parts, kind=kind, names=names, excluded=excluded, index_hash=hashes)


def split_episodes(keys: Sequence[str], with_test: bool, seed: int) -> dict[str, set[str]]:
    """Assign each episode to one part: 25% to test, 15% to validation, the rest to training.

    Args:
        keys: keys of the episodes.
        with_test: False leaves out the test part.
        seed: seed of the assignment.

    Raises:
        ValueError: fewer episodes than required: two each for training and test (one alone has no variance), one for
            validation.
    """
    least = 5 if with_test else 3
    if len(keys) < least:
        raise ValueError(
            f"{len(keys)} episodes are too few for parts that share none: {least} are required. Record more, or "
            f"shorter ones (vwm record --max-episode-frames)"
        )
    order = sorted(keys, key=lambda key: key_hash(key, f"probe {seed}".encode()[:16]))
    tested = max(2, round(TEST_SHARE * len(keys))) if with_test else 0
    validated = max(1, round(VAL_SHARE * len(keys)))
    ends = {"test": tested, "val": tested + validated, "train": len(keys)}
    starts = {"test": 0, "val": tested, "train": tested + validated}
    return {part: set(order[starts[part] : ends[part]]) for part in SPLITS}


def _episode_keys(data: str) -> list[str]:
    """Return a unique name of every episode: equal keys in different shards are different episodes."""
    return [
        _episode_key(index, entry.key) for index in map(load_shard_index, list_shards(data)) for entry in index.episodes
    ]


def _episode_key(shard: ShardIndex, key: str) -> str:
    return f"{shard.tar}:{key}"


def _open_dataset(
    data: str, chosen: set[str] | None, clip_length: int, stride: int, fields: Sequence[str], seed: int
) -> ClipDataset:
    """Open clips of some episodes, shuffled over all shards, so that a few clips come from many episodes."""
    paths = list_shards(data)
    shards = [load_shard_index(path) for path in paths]
    if chosen is not None:
        shards = [replace(s, episodes=tuple(e for e in s.episodes if _episode_key(s, e.key) in chosen)) for s in shards]
    order = ClipOrder(shards, clip_length, stride, seed, shuffle=True, shards_per_block=len(shards))
    return ClipDataset(paths, shards, order, clip_length, stride, fields)


def _read_split(dataset: ClipDataset, count: int, label: str | None, part: str) -> _UnprocessedSplit:
    addresses = [dataset.order.address(0, i) for i in range(min(count, len(dataset.order)))]
    frames: list[Tensor] = []
    values, episodes = [], []
    numbers: dict[tuple[int, int], int] = {}
    names: list[str] | None = None
    for address in progress_bar(addresses, desc=f"read clips, {part}", unit="clip"):
        path, entry = dataset.paths[address.shard], dataset.shards[address.shard].episodes[address.episode]
        clip, where = dataset.read(address), f"{path}: episode {entry.key!r}"
        if frames and clip["frames"].shape != frames[0].shape:
            raise ValueError(f"{where} has frames of another size than the other episodes: {clip['frames'].shape[1:]}")
        frames.append(torch.from_numpy(clip["frames"].copy()))
        meta = read_episode_metadata(path, entry)
        values.append(_read_label(clip, meta, label, where))
        names = names or meta.get("state_names")
        episodes.append(numbers.setdefault((address.shard, address.episode), len(numbers)))
    return _UnprocessedSplit(torch.stack(frames), values, names, torch.tensor(episodes), len(dataset.order))


def _read_label(clip: dict[str, Any], meta: dict[str, Any], label: str | None, where: str) -> Any:
    if label is not None:
        if label not in meta:
            raise ValueError(f"{where} has no label {label!r} in its json, only {', '.join(sorted(meta)) or 'nothing'}")
        return meta[label]
    if "state" not in clip:
        raise ValueError(
            f"{where} has no state: record with `vwm record --state`, or name a label of its json (--label)"
        )
    return clip["state"][-1]


def _regression_labels(
    raw: dict[str, _UnprocessedSplit], what: str, state_names: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Return standardized numbers by part, their names, and the excluded numbers with the reason."""
    try:
        stacked = {
            part: np.stack([np.ravel(v) for v in found.values]).astype(np.float64) for part, found in raw.items()
        }
        train, test = stacked["train"], stacked["test"]
        sizes = {values.shape[1] for values in stacked.values()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} does not have the same number of values in every episode ({error})") from error
    if len(sizes) > 1:
        raise ValueError(f"{what} has {sorted(sizes)} numbers in the parts; it must have the same number in each")
    names = raw["train"].names or ([what] if train.shape[1] == 1 else [str(i) for i in range(train.shape[1])])
    if len(names) != train.shape[1]:
        raise ValueError(f"{what} has {train.shape[1]} numbers, but {len(names)} names: {', '.join(names)}")
    unknown = [name for name in state_names if name not in names]
    if unknown:
        raise ValueError(f"there is no {', '.join(unknown)} in {what}; it has {', '.join(names)}")
    excluded = {}
    for i, name in enumerate(names):
        values = len(np.unique(train[:, i]))
        if state_names and name not in state_names:
            excluded[name] = "not selected"
        elif not (np.isfinite(train[:, i]).all() and np.isfinite(test[:, i]).all()):
            excluded[name] = "not finite"
        elif values < MIN_DISTINCT_VALUES:
            excluded[name] = f"{values} values in the training clips"
        elif test[:, i].var() < MIN_VARIANCE_RATIO * train[:, i].var():
            excluded[name] = "nearly constant in the test clips"
    kept = [i for i, name in enumerate(names) if name not in excluded]
    if not kept:
        raise ValueError(f"nothing is left to predict of {what}: {_format_reasons(excluded)}")
    mean, std = train[:, kept].mean(axis=0), train[:, kept].std(axis=0)
    labels = {part: torch.from_numpy((values[:, kept] - mean) / std) for part, values in stacked.items()}
    return labels, tuple(names[i] for i in kept), excluded


def _class_labels(
    raw: dict[str, _UnprocessedSplit], what: str, state_names: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Return class indices by part, the names of the classes, and an empty dict of excluded numbers."""
    if state_names:
        raise ValueError(f"{what} are classes; state_names={list(state_names)} selects among numbers: leave it out")
    names = _sorted_classes(raw["train"].values)
    if len(names) < 2:
        raise ValueError(f"{what} is {names[0]!r} in every training clip: there is only one class")
    for part in ("val", "test"):
        unseen = [name for name in _sorted_classes(raw[part].values) if name not in names]
        if unseen:
            raise ValueError(
                f"{what} {', '.join(map(str, unseen))} is in the {part} part only: use more episodes, more clips, or "
                f"another --seed, which changes the split"
            )
    labels = {part: torch.tensor([names.index(v) for v in found.values]) for part, found in raw.items()}
    return labels, tuple(map(str, names)), {}


def _sorted_classes(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values), key=lambda v: (str(type(v)), v))


def _format_reasons(excluded: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in excluded.items())
