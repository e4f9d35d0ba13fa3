"""Check that the data sets of a mixture can stand in one batch, and mean the same by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vwm.core.json_files import parse_json_object
from vwm.core.remote_files import is_remote, read_file
from vwm.data.mixtures import DataSet
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex
from vwm.data.shard_reading import read_array_rows, read_episode_metadata

Episodes = Sequence[tuple[str, EpisodeIndexEntry]]
"""Episodes with the shard that each is in."""
ENCODING_FILE = "encoding.json"
"""Names the tokenizer of a folder of latents; ``vwm encode`` writes it."""


def check_same_kind(data_sets: Sequence[DataSet], shards: Sequence[ShardIndex], fields: Sequence[str]) -> None:
    """Compare every data set with the first one.

    Args:
        data_sets: the data sets.
        shards: the indices of all their shards, one data set after the other.
        fields: the fields that are read.

    Raises:
        ValueError: frames, frame rates, actions or latents differ; the message names both data sets.
    """
    if len(data_sets) < 2:
        return
    ends = list(accumulate(len(data_set.shards) for data_set in data_sets))
    episodes = [
        [
            (path, entry)
            for path, shard in zip(data_set.shards, shards[end - len(data_set.shards) : end], strict=True)
            for entry in shard.episodes
        ]
        for data_set, end in zip(data_sets, ends, strict=True)
    ]
    names = [data_set.name for data_set in data_sets]
    for what, describe, remedy in _COMPARISONS:
        if what not in ("frame rate", *fields):
            continue
        found = [(name, describe(group, name)) for name, group in zip(names, episodes, strict=True)]
        known = [(name, value) for name, value in found if value]
        for name, value in known[1:]:
            if value != known[0][1]:
                raise ValueError(f"{known[0][0]} has {known[0][1]}, {name} has {value}: {remedy}")


def _describe_frames(episodes: Episodes, name: str) -> str:
    sizes = sorted({(entry.height, entry.width) for _, entry in episodes if entry.has_frames})
    return f"frames of {' and '.join(f'{h}x{w}' for h, w in sizes)} pixels" if sizes else ""


def _describe_rate(episodes: Episodes, name: str) -> str:
    rates = sorted({round(entry.fps, 2) for _, entry in episodes if entry.fps and entry.frames > 1})
    return f"{' and '.join(f'{rate:g}' for rate in rates)} frames per second" if rates else ""


def _describe_actions(episodes: Episodes, name: str) -> str:
    labeled = next(((path, entry) for path, entry in episodes if "actions.npy" in entry.members), None)
    if labeled is None:
        return ""  # its clips count as unlabeled
    row = read_array_rows(*labeled, "actions", 0, 1)
    meta = read_episode_metadata(*labeled)
    kind = f"continuous actions of {row.shape[1]} dimensions" if row.ndim == 2 else "discrete actions"
    if meta.get("action_parts"):
        return f"{kind} with the parts {meta['action_parts']}"
    return kind


def _describe_action_names(episodes: Episodes, name: str) -> str:
    labeled = next(((path, entry) for path, entry in episodes if "actions.npy" in entry.members), None)
    names = read_episode_metadata(*labeled).get("action_names") if labeled else None
    return f"the actions {', '.join(map(str, names))}" if names else ""


def _describe_latents(episodes: Episodes, name: str) -> str:
    encoded = next(((path, entry) for path, entry in episodes if "latents.npy" in entry.members), None)
    if encoded is None:
        return "no latents"
    row = read_array_rows(*encoded, "latents", 0, 1)
    file = encoded[0].rpartition("/")[0] + f"/{ENCODING_FILE}"
    try:
        text = read_file(file) if is_remote(file) else Path(file).read_bytes()
        tokenizer: Any = parse_json_object(text, file).get("fingerprint", "unknown")
    except FileNotFoundError:
        tokenizer = "unknown"
    return f"latents {row.dtype} {list(row.shape[1:])} of tokenizer {tokenizer}"


_COMPARISONS: tuple[tuple[str, Callable[[Episodes, str], str], str], ...] = (
    ("frames", _describe_frames, "record or ingest them at one size (--size)"),
    ("frame rate", _describe_rate, "ingest them at one rate (--fps), or record with the same frame skip"),
    ("actions", _describe_actions, "record them with the same actions, or leave actions out of data.fields"),
    ("actions", _describe_action_names, "record them with the same actions, or leave actions out of data.fields"),
    ("latents", _describe_latents, "encode both with one tokenizer (vwm encode)"),
)
