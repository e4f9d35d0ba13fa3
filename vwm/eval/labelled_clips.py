"""Clips with something to say of them, in three parts that share no episode: what probes are fitted and judged on.

Legend: n clips, t time, h w pixels, o numbers to predict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vwm.data.clip_order import ClipOrder
from vwm.data.clips import ClipDataset
from vwm.data.episode_selection import key_hash
from vwm.data.shard_index import ShardIndex, list_shards, load_shard_index
from vwm.data.shard_reading import read_episode_metadata

LabelKind = Literal["numbers", "classes"]

SPLITS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.15, 0.25
MIN_DISTINCT_VALUES = 5
"""Different values that a number must take in the training clips: fewer make it a flag, of which R² says little."""
MIN_VARIANCE_RATIO = 0.05
"""Of a number in the test clips, as a share of that in the training clips: R² divides by it."""


@dataclass(frozen=True)
class LabelledSplit:
    """Clips of one part.

    Attributes:
        frames: uint8 [n, t, h, w, 3].
        labels: float64 [n, o], standardised by the training part; or int64 [n], classes.
        episodes: int64 [n], a number for each clip's episode, from 0 on.
        available: clips that there would have been.
    """

    frames: Tensor
    labels: Tensor
    episodes: Tensor
    available: int

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class LabelledClips:
    """Three parts of a data set.

    Attributes:
        train, val, test: probes are fitted on the first, chosen on the second and judged on the third.
        kind: of the labels.
        names: of the numbers, or of the classes.
        left_out: numbers that are not asked for, with the reason.
        index_hash: of the shards that the parts come from.
    """

    train: LabelledSplit
    val: LabelledSplit
    test: LabelledSplit
    kind: LabelKind
    names: tuple[str, ...]
    left_out: dict[str, str]
    index_hash: dict[str, str]

    @property
    def outputs(self) -> int:
        """o, or the number of classes."""
        return len(self.names)


@dataclass(frozen=True)
class _UnprocessedSplit:
    """Clips before anything was made of their labels: ``values`` one a clip."""

    frames: Tensor
    values: list[Any]
    names: list[str] | None
    episodes: Tensor
    available: int


def read_labelled_clips(
    data: str,
    clip_length: int,
    stride: int = 1,
    label: str | None = None,
    only: Sequence[str] = (),
    test: str | None = None,
    clips: int = 1024,
    test_clips: int = 512,
    seed: int = 0,
) -> LabelledClips:
    """Read clips at random starts, and what is known of them.

    Episodes are dealt to the parts by a hash of their keys and the seed, so that no episode is in two of them: clips
    of one episode look alike.

    Args:
        data: shards, see ``vwm.data.shard_index.list_shards``.
        clip_length: t.
        stride: frames from one frame of a clip to its next.
        label: a key of the episodes' json. Text, whole numbers and truth values are classes, other numbers are
            numbers. None: the recorded state at a clip's LAST frame.
        only: names of the numbers to keep; empty keeps all that vary.
        test: other shards to judge on; ``data`` then makes the other two parts.
        clips: at most so many for training, and a quarter of them for validation.
        test_clips: at most so many.
        seed: of the parts, and of the clips in them.

    Raises:
        ValueError: too few episodes, a label that is not there, a class that training has not seen.
    """
    dealt = split_episodes(_episode_keys(data), test is None, seed)
    limits = {"train": clips, "val": max(1, clips // 4), "test": test_clips}
    raw, hashes = {}, {}
    for part in SPLITS:
        where = test if part == "test" and test is not None else data
        chosen = None if part == "test" and test is not None else dealt[part]
        dataset = _open_dataset(where, chosen, clip_length, stride, ("frames",) if label else ("frames", "state"), seed)
        raw[part] = _read_split(dataset, limits[part], label, part)
        hashes[part] = dataset.order.index_hash
    values = [value for part in raw.values() for value in part.values]
    make = (
        _class_labels
        if label is not None and not any(isinstance(v, float | list) for v in values)
        else _regression_labels
    )
    labels, names, left_out = make(raw, label or "state", only)
    parts = {
        part: LabelledSplit(found.frames, labels[part], found.episodes, found.available) for part, found in raw.items()
    }
    kind: LabelKind = "classes" if make is _class_labels else "numbers"
    return LabelledClips(**parts, kind=kind, names=names, left_out=left_out, index_hash=hashes)


def split_episodes(keys: Sequence[str], with_test: bool, seed: int) -> dict[str, set[str]]:
    """Deal episodes to the parts, each to one: a quarter for testing, 15% for validation, the rest for training.

    Args:
        keys: of the episodes.
        with_test: False leaves out the part for testing.
        seed: other seeds deal otherwise.

    Raises:
        ValueError: fewer episodes than it takes: two each for training and for testing (one alone has no spread),
            one for validation.
    """
    least = 5 if with_test else 3
    if len(keys) < least:
        raise ValueError(
            f"{len(keys)} episodes are too few for parts that share none: it takes {least}. Record more, or shorter "
            f"ones (vwm record --max-episode-frames)"
        )
    order = sorted(keys, key=lambda key: key_hash(key, f"probe {seed}".encode()[:16]))
    tested = max(2, round(TEST_SHARE * len(keys))) if with_test else 0
    validated = max(1, round(VAL_SHARE * len(keys)))
    ends = {"test": tested, "val": tested + validated, "train": len(keys)}
    starts = {"test": 0, "val": tested, "train": tested + validated}
    return {part: set(order[starts[part] : ends[part]]) for part in SPLITS}


def _episode_keys(data: str) -> list[str]:
    """A name for every episode: equal keys in different shards are different episodes."""
    return [
        _episode_key(index, entry.key) for index in map(load_shard_index, list_shards(data)) for entry in index.episodes
    ]


def _episode_key(shard: ShardIndex, key: str) -> str:
    return f"{shard.tar}:{key}"


def _open_dataset(
    data: str, chosen: set[str] | None, clip_length: int, stride: int, fields: Sequence[str], seed: int
) -> ClipDataset:
    """Clips of some episodes, shuffled over all shards at once, so that a few of them come from many episodes."""
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
    for address in tqdm(addresses, desc=f"read clips, {part}", unit="clip", disable=None):
        path, entry = dataset.paths[address.shard], dataset.shards[address.shard].episodes[address.episode]
        clip, where = dataset.read(address), f"{path}: episode {entry.key!r}"
        if frames and clip["frames"].shape != frames[0].shape:
            raise ValueError(f"{where} has frames of another size than others: {clip['frames'].shape[1:]}")
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
    raw: dict[str, _UnprocessedSplit], what: str, only: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Standardised numbers, their names, and which were left out."""
    try:
        stacked = {
            part: np.stack([np.ravel(v) for v in found.values]).astype(np.float64) for part, found in raw.items()
        }
        train, test = stacked["train"], stacked["test"]
        sizes = {values.shape[1] for values in stacked.values()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not as many numbers in every episode ({error})") from error
    if len(sizes) > 1:
        raise ValueError(f"{what} has {sorted(sizes)} numbers in the parts; they must be alike")
    names = raw["train"].names or ([what] if train.shape[1] == 1 else [str(i) for i in range(train.shape[1])])
    if len(names) != train.shape[1]:
        raise ValueError(f"{what} has {train.shape[1]} numbers, but {len(names)} names: {', '.join(names)}")
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f"there is no {', '.join(unknown)} in {what}; it has {', '.join(names)}")
    left_out = {}
    for i, name in enumerate(names):
        values = len(np.unique(train[:, i]))
        if only and name not in only:
            left_out[name] = "not asked for"
        elif not (np.isfinite(train[:, i]).all() and np.isfinite(test[:, i]).all()):
            left_out[name] = "not finite"
        elif values < MIN_DISTINCT_VALUES:
            left_out[name] = f"{values} values in the training clips"
        elif test[:, i].var() < MIN_VARIANCE_RATIO * train[:, i].var():
            left_out[name] = "hardly varies in the test clips"
    kept = [i for i, name in enumerate(names) if name not in left_out]
    if not kept:
        raise ValueError(f"nothing is left to predict of {what}: {_format_reasons(left_out)}")
    mean, std = train[:, kept].mean(axis=0), train[:, kept].std(axis=0)
    labels = {part: torch.from_numpy((values[:, kept] - mean) / std) for part, values in stacked.items()}
    return labels, tuple(names[i] for i in kept), left_out


def _class_labels(
    raw: dict[str, _UnprocessedSplit], what: str, only: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, str]]:
    """Numbers of classes, and the classes' names."""
    if only:
        raise ValueError(f"{what} are classes; only={list(only)} chooses among numbers")
    names = _sorted_classes(raw["train"].values)
    if len(names) < 2:
        raise ValueError(f"{what} is {names[0]!r} in every training clip: there is nothing to tell apart")
    for part in ("val", "test"):
        unseen = [name for name in _sorted_classes(raw[part].values) if name not in names]
        if unseen:
            raise ValueError(
                f"{what} {', '.join(map(str, unseen))} stands in the {part} part alone: use more episodes, more clips, "
                f"or another --seed, which deals the episodes otherwise"
            )
    labels = {part: torch.tensor([names.index(v) for v in found.values]) for part, found in raw.items()}
    return labels, tuple(map(str, names)), {}


def _sorted_classes(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values), key=lambda v: (str(type(v)), v))


def _format_reasons(left_out: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in left_out.items())
