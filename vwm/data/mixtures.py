"""Mixtures: more training clips of some data sets, buckets of episodes, ends, rewards or labeled episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vwm.data.clip_order import ClipOrder, NotEnoughClipsError
from vwm.data.episode_selection import find_labeled
from vwm.data.mixed_order import ClipSequence, ClipSource, MixedOrder
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex, list_shards
from vwm.data.shard_reading import is_terminated, read_array

DataPath = str | Sequence[str] | Mapping[str, float]
"""Shards: a folder, tar, pattern or address; several of them; or several with their weights."""


@dataclass(frozen=True)
class EpisodeBuckets:
    """Buckets of episodes, drawn from by weight.

    Args:
        by: what sorts episodes: ``seconds``, ``frames``, or the name of a number under ``scores`` in their metadata.
        edges: boundaries between the buckets, ascending; an episode at an edge is in the upper bucket.
        weights: of each bucket, one more than edges; 0 leaves a bucket out. Only their ratios count.

    Raises:
        ValueError: the edges do not ascend, or the weights are not one more, or negative.
    """

    by: str = "seconds"
    edges: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.edges or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"data.buckets: edges must ascend, such as [4, 10], got {self.edges}")
        if len(self.weights) != len(self.edges) + 1 or min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(
                f"data.buckets: {len(self.edges)} edges make {len(self.edges) + 1} buckets: give as many weights of 0 "
                f"or more, got {self.weights}"
            )

    def names(self) -> list[str]:
        """Return a name for each bucket: ``seconds from 4 to 10``."""
        edges = [f"{edge:g}" for edge in self.edges]
        inner = [f"{self.by} from {low} to {high}" for low, high in pairwise(edges)]
        return [f"{self.by} below {edges[0]}", *inner, f"{self.by} from {edges[-1]}"]

    def find(self, entry: EpisodeIndexEntry, where: str) -> int:
        """Return the bucket of an episode. Raises ValueError where the episode lacks the number."""
        if self.by == "frames":
            value: float | None = entry.frames
        elif self.by == "seconds":
            value = entry.frames / entry.fps if entry.fps else None
        else:
            value = entry.scores.get(self.by)
        if value is None:
            known = "its frame rate is unknown" if self.by == "seconds" else f"its scores are {entry.scores or 'none'}"
            raise ValueError(f"data.buckets: {where}:{entry.key} has no {self.by} ({known}): choose another `by`")
        return int(np.searchsorted(self.edges, value, side="right"))


class DataSet(NamedTuple):
    """One data set of a mixture: its name, its weight (None: as many clips as it has) and its shards."""

    name: str
    weight: Fraction | None
    shards: list[str]


def list_data_sets(path: DataPath) -> list[DataSet]:
    """Find the shards of one or several data sets.

    Raises:
        FileNotFoundError: a data set has no shards.
        ValueError: no data set, or two of one name.
    """
    if isinstance(path, str):
        return [DataSet(path, None, list_shards(path))]
    weights = (
        {str(name): _read_weight(name, weight) for name, weight in path.items()} if isinstance(path, Mapping) else {}
    )
    names = list(weights) or [str(name) for name in path]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"data.path must name different data sets, got {names}: a weight of 2 draws from one twice as often"
        )
    return [DataSet(name, weights.get(name), list_shards(name)) for name in names]


def _read_weight(name: str, weight: float) -> Fraction:
    try:
        exact = Fraction(str(weight))
    except ValueError:
        exact = Fraction(0)
    if exact <= 0:
        raise ValueError(
            f"data.path: the weight of {name} must be a number above 0, got {weight}: leave it out instead"
        )
    return exact


@dataclass(frozen=True)
class MixtureOptions:
    """What ``make_order`` draws more often: see ``vwm.data.datamodule.VideoDataModule``.

    Raises:
        ValueError: the shares are more than all clips.
    """

    ends_share: float | None = None
    buckets: EpisodeBuckets | None = None
    rewards_share: float | None = None
    labeled_share: float | None = None

    def __post_init__(self) -> None:
        names = ("ends_share", "rewards_share", "labeled_share")
        shares = {name: share for name in names if (share := getattr(self, name))}
        if sum(Fraction(str(share)) for share in shares.values()) > 1:
            listed = " and ".join(f"data.{name} {share:g}" for name, share in shares.items())
            raise ValueError(f"{listed} are more than all clips together: lower one of them")


UNMIXED = MixtureOptions()
"""Every clip once per epoch, unless data sets have weights."""


def make_order(
    data_sets: Sequence[DataSet],
    shards: Sequence[ShardIndex],
    options: MixtureOptions,
    make: partial[ClipOrder],
    labeled_fraction: float = 1.0,
) -> ClipSequence:
    """Make the order of the clips of all data sets.

    Args:
        data_sets: the data sets.
        shards: the indices of all their shards, one data set after the other.
        options: what is drawn more often.
        make: makes a ``ClipOrder`` of shards.
        labeled_fraction: fraction of the episodes whose actions are given.

    Raises:
        NotEnoughClipsError: a data set or bucket with a weight has no clip, no episode terminated, no action was
            rewarded, or none is given.
    """
    paths = [path for data_set in data_sets for path in data_set.shards]
    if all(data_set.weight is None for data_set in data_sets):
        if options == UNMIXED:
            return make(shards)
        data_sets = [DataSet(", ".join(d.name for d in data_sets), Fraction(1), paths)]
    builder = _OrderBuilder(shards, paths, options, make, labeled_fraction)
    owners = np.repeat(np.arange(len(data_sets)), [len(data_set.shards) for data_set in data_sets])
    sources = []
    for number, (name, weight, _) in enumerate(data_sets):
        chosen = [np.full(len(shard.episodes), owner == number) for shard, owner in zip(shards, owners, strict=True)]
        assert weight is not None
        sources.append(ClipSource(name, builder.make_data_set(name, chosen, (number,)), weight))
    builder.check_used(", ".join(d.name for d in data_sets))
    return sources[0].order if len(sources) == 1 else MixedOrder(sources, builder.seed)


class _OrderBuilder:
    """Makes the orders of single data sets: ends, rewards and labels apart from the rest, and the rest by buckets."""

    def __init__(
        self,
        shards: Sequence[ShardIndex],
        paths: Sequence[str],
        options: MixtureOptions,
        make: partial[ClipOrder],
        labeled_fraction: float,
    ) -> None:
        self.shards = shards
        self.paths = paths
        self.options = options
        self.make = make
        self.labeled_fraction = labeled_fraction
        self.seed = int(make.keywords["seed"])
        self.used: set[str] = set()
        self.buckets = self._each(options.buckets.find) if options.buckets is not None else None

    def make_data_set(self, name: str, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipSequence:
        """Return the order of the chosen episodes."""
        buckets = self.options.buckets
        if buckets is not None and self.buckets is not None:
            weighted = np.array(buckets.weights) > 0
            chosen = [mask & weighted[numbers] for mask, numbers in zip(chosen, self.buckets, strict=True)]
        special = [
            source
            for source in (
                self._ends(chosen, (*branch, 1)),
                self._rewards(chosen, (*branch, 2)),
                self._labeled(chosen, (*branch, 3)),
            )
            if source is not None
        ]
        if not special:
            return self._by_buckets(name, chosen, branch)
        rest = 1 - sum((source.weight for source in special), Fraction())
        if not rest:
            return MixedOrder(special, self.seed, branch=branch)
        clips = self._by_buckets(name, chosen, (*branch, 0))
        sources = [*special, ClipSource("all clips", clips, rest)]
        return MixedOrder(sources, self.seed, length=len(clips), branch=branch)

    def _ends(self, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipSource | None:
        """Clips of the ends of the chosen episodes that terminated."""
        if not self.options.ends_share:
            return None
        terminated = self._each(lambda entry, path: is_terminated(path, entry))
        ended = [mask & ends.astype(bool) for mask, ends in zip(chosen, terminated, strict=True)]
        return self._special("ends of episodes", "ends_share", chosen=ended, only_ends=True, branch=branch)

    def _rewards(self, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipSource | None:
        """Clips around the rewards of the chosen episodes."""
        if not self.options.rewards_share:
            return None
        unit = int(self.make.keywords["frames_per_latent"])
        events = [
            [_find_rewarded(path, entry, unit) if mask[i] else _NO_EVENT for i, entry in enumerate(shard.episodes)]
            for path, shard, mask in zip(self.paths, self.shards, chosen, strict=True)
        ]
        return self._special("around rewards", "rewards_share", chosen=chosen, events=events, branch=branch)

    def _labeled(self, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipSource | None:
        """Clips of the chosen episodes whose actions are known."""
        if not self.options.labeled_share:
            return None
        labeled = find_labeled(self.shards, self.labeled_fraction)
        known = [mask & given for mask, given in zip(chosen, labeled, strict=True)]
        return self._special("labeled", "labeled_share", chosen=known, branch=branch)

    def _special(self, name: str, share: str, **options: Any) -> ClipSource | None:
        """Return the clips of ``ClipOrder``'s options with the share of that name; None where there are none."""
        try:
            order = self.make(self.shards, **options)
        except NotEnoughClipsError:
            return None
        self.used.add(share)
        return ClipSource(name, order, Fraction(str(getattr(self.options, share))))

    def check_used(self, name: str) -> None:
        """Raise NotEnoughClipsError where nothing is drawn from what was requested."""
        buckets = self.options.buckets
        for bucket, weight in zip(buckets.names(), buckets.weights, strict=True) if buckets else ():
            if weight and bucket not in self.used:
                raise NotEnoughClipsError(
                    f"{name}: data.buckets draws from {bucket} with weight {weight:g}, where no training episode is as "
                    f"long as a clip: set its weight to 0, or other edges"
                )
        if self.options.ends_share and "ends_share" not in self.used:
            raise NotEnoughClipsError(
                f"{name}: data.ends_share is {self.options.ends_share:g}, but no training episode terminated: leave it "
                f"out, or record episodes to their end"
            )
        if self.options.rewards_share and "rewards_share" not in self.used:
            raise NotEnoughClipsError(
                f"{name}: data.rewards_share is {self.options.rewards_share:g}, but no action of a training episode "
                f"that is as long as a clip was rewarded: leave it out"
            )
        if self.options.labeled_share and "labeled_share" not in self.used:
            raise NotEnoughClipsError(
                f"{name}: data.labeled_share is {self.options.labeled_share:g}, but the actions of no training episode "
                f"as long as a clip are given (data.labeled_fraction {self.labeled_fraction:g}): leave it out"
            )

    def _by_buckets(self, name: str, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipSequence:
        buckets = self.options.buckets
        if buckets is None or self.buckets is None:
            return self._clips(name, chosen, branch)
        sources = []
        for number, (bucket, weight) in enumerate(zip(buckets.names(), buckets.weights, strict=True)):
            masks = [mask & (numbers == number) for mask, numbers in zip(chosen, self.buckets, strict=True)]
            try:
                order = self.make(self.shards, chosen=masks, branch=(*branch, number)) if weight else None
            except NotEnoughClipsError:  # the others share its place, unless no data set has such episodes
                continue
            if order is not None:
                self.used.add(bucket)
                sources.append(ClipSource(bucket, order, Fraction(str(weight))))
        return MixedOrder(sources, self.seed, branch=branch) if sources else self._clips(name, chosen, branch)

    def _clips(self, name: str, chosen: list[NDArray[np.bool_]], branch: tuple[int, ...]) -> ClipOrder:
        try:
            return self.make(self.shards, chosen=chosen, branch=branch)
        except NotEnoughClipsError as error:
            raise NotEnoughClipsError(f"{name}: {error}") from None

    def _each(self, value: Callable[[EpisodeIndexEntry, str], int]) -> list[NDArray[np.int64]]:
        """Return a number of each episode of each shard."""
        return [
            np.array([value(entry, path) for entry in shard.episodes], np.int64)
            for path, shard in zip(self.paths, self.shards, strict=True)
        ]


_NO_EVENT = np.zeros(0, np.int64)


def _find_rewarded(path: str, entry: EpisodeIndexEntry, unit: int) -> NDArray[np.int64]:
    """Return the frames whose actions were rewarded, or the latents that hold them, ascending; none without rewards."""
    if "rewards.npy" not in entry.members:
        return _NO_EVENT
    frames = np.flatnonzero(read_array(path, entry, "rewards"))
    return np.unique((frames[frames < entry.frames] + unit - 1) // unit)


def count_drawn(order: ClipSequence, first: int, last: int) -> dict[str, int]:
    """Return how many clips between two positions of a training come from each source, by its name."""
    if not isinstance(order, MixedOrder):
        return {}
    counts: dict[str, int] = {}
    begins, ends = order.count_drawn(first), order.count_drawn(last)
    for source, begin, end in zip(order.sources, begins, ends, strict=True):
        below = {f"{source.name}, {name}": count for name, count in count_drawn(source.order, begin, end).items()}
        counts |= {source.name: end - begin} | below
    return counts
