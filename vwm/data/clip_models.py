"""What models add to the clips of an ingest: latents, an embedding, a caption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vwm.data.frame_reading import read_episode_frames
from vwm.data.one_thread import one_thread
from vwm.data.shard_index import EpisodeIndexEntry
from vwm.data.shard_reading import read_sample


@dataclass(frozen=True)
class ClipAdditions:
    """What is added to the sample of a clip.

    Attributes:
        arrays: members of the sample, by extension (``"latents.npy"``).
        meta: entries of its metadata.
    """

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


ClipFunction = Callable[[NDArray[np.uint8]], ClipAdditions]
"""A loaded model: the frames of a clip, uint8 [T, H, W, 3], as the shard holds them, to what is added to it."""


class ClipModel(Protocol):
    """A model by its folder, hashable and small: worker processes load it, once each."""

    @property
    def adds(self) -> str:
        """What it adds, in one word; no two models of an ingest add the same."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that its outputs depend on. Shards of an ingest hold those of one model only."""

    def load(self) -> ClipFunction:
        """Load it."""

    def __hash__(self) -> int: ...


@contextmanager
def load_clip_models(models: Sequence[ClipModel]) -> Iterator[list[ClipFunction]]:
    """Load models, unless this process has loaded them before, and compute with one thread on a CPU."""
    with one_thread():
        yield [_load(model) for model in models]


@cache
def _load(model: ClipModel) -> ClipFunction:
    return model.load()


def forget_clip_models() -> None:
    """Free the models that this process has loaded."""
    _load.cache_clear()


def extend_sample(shard: str, entry: EpisodeIndexEntry, functions: Sequence[ClipFunction]) -> dict[str, Any]:
    """Return the sample of a clip with what models add to it; all else that a shard stores is copied byte for byte."""
    sample: dict[str, Any] = {"__key__": entry.key} | read_sample(shard, entry)
    if functions:
        frames = read_episode_frames(shard, entry)
        for function in functions:
            add_to_sample(sample, function(frames))
    return sample


def add_to_sample(sample: dict[str, Any], additions: ClipAdditions) -> None:
    """Add to a sample of encoded members."""
    sample |= additions.arrays
    if additions.meta:
        meta = json.loads(sample.get("json", b"{}"))
        sample["json"] = json.dumps(meta | additions.meta).encode()
