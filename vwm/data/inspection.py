"""`vwm inspect`: statistics of the contents of shards, and a contact sheet of their frames."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.action_parts import read_action_parts
from vwm.core.atomic_files import atomic_write
from vwm.core.command_output import (
    format_count,
    format_size,
    format_training,
    print_next_command,
    print_output,
    progress_bar,
)
from vwm.data.composite_statistics import CompositeActionStatistics
from vwm.data.frame_reading import read_frames
from vwm.data.in_place import count_source_bytes, is_in_place, short_data_name
from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex, list_shards, load_shard_indices
from vwm.data.shard_reading import read_array, read_episode_metadata

SHEET_ROWS, SHEET_COLUMNS, SHEET_SIDE = 8, 10, 96
BAR_WIDTH = 40
MAX_STATE_LINES = 12
MAX_ACTION_LINES = 256
"""Of more actions, the most frequent ones are listed."""
UNNAMED_STATE_PATTERN = re.compile(r"(ram|state)_\d+")


@dataclass
class DatasetStatistics:
    """Statistics over the episodes of all shards.

    Attributes:
        hours: duration of the episodes whose frame rate is known.
        sizes, fps, sources: number of episodes of each frame size, frame rate and source.
        bytes: size of the members by extension, in bytes; of data in place, that of its files.
        lengths: number of frames of each episode.
        action_kinds: number of episodes with discrete, continuous, composite and no actions.
        discrete_action_counts: number of time steps of each discrete action.
        continuous_actions: the actions of each episode with continuous ones, float32 [T, A].
        composite_actions: those of episodes with composite ones, by their parts.
        total_reward: sum over the episodes that have rewards.
        state_ranges: names of the state variables to their lowest and highest values, float32 [S].
        ending_counts: number of terminated and truncated episodes.
    """

    episodes: int = 0
    frames: int = 0
    hours: float = 0.0
    sizes: Counter[str] = field(default_factory=Counter)
    fps: Counter[float] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    action_kinds: Counter[str] = field(default_factory=Counter)
    discrete_action_counts: Counter[int] = field(default_factory=Counter)
    action_names: list[str] = field(default_factory=list)
    continuous_actions: list[NDArray[np.float32]] = field(default_factory=list)
    composite_actions: CompositeActionStatistics = field(default_factory=CompositeActionStatistics)
    total_reward: float = 0.0
    episodes_with_rewards: int = 0
    state_ranges: dict[tuple[str, ...], tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    ending_counts: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)


def inspect_dataset(data: str, sheet: Path | None = None) -> None:
    """Print statistics of shards and, if requested, write a contact sheet of their frames.

    Args:
        data: a folder of shards, one shard, or an fsspec address of either.
        sheet: a PNG to write, with one episode per row and its frames from left to right.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: a shard is invalid; the message names it.
    """
    shards = list_shards(data)
    indices = load_shard_indices(shards)
    statistics = DatasetStatistics()
    for shard, index in zip(progress_bar(shards, unit="shard", desc="inspect"), indices, strict=True):
        _count_shard(statistics, shard, index)
    if is_in_place(shards[0]):
        statistics.bytes = count_source_bytes(shards)
    for line in format_dataset_statistics(statistics, shards, indices):
        print(line)
    if sheet is not None:
        write_contact_sheet(shards, indices, sheet)
        print_output(sheet, "a contact sheet")
    print_next_command(format_training(data, Path(short_data_name(data)).stem))


def _count_shard(statistics: DatasetStatistics, shard: str, index: ShardIndex) -> None:
    for entry in index.episodes:
        statistics.episodes += 1
        statistics.frames += entry.frames
        statistics.lengths.append(entry.frames)
        statistics.hours += entry.frames / entry.fps / 3600 if entry.fps else 0
        statistics.sizes[f"{entry.height}x{entry.width}"] += 1
        statistics.fps[entry.fps] += 1
        for extension, (_, size) in entry.members.items():
            statistics.bytes[extension] += size
        meta = read_episode_metadata(shard, entry)
        statistics.sources[str(meta.get("source", "unknown"))] += 1
        statistics.action_names = statistics.action_names or list(meta.get("action_names") or [])
        statistics.ending_counts["terminated" if meta.get("terminated") else "truncated"] += 1
        if "rewards.npy" in entry.members:
            statistics.total_reward += float(read_array(shard, entry, "rewards").sum())
            statistics.episodes_with_rewards += 1
        _count_actions(statistics, shard, entry, meta)
        if "state.npy" in entry.members:
            _count_state(statistics, read_array(shard, entry, "state"), meta)


def _count_actions(statistics: DatasetStatistics, shard: str, entry: EpisodeIndexEntry, meta: dict[str, Any]) -> None:
    if "actions.npy" not in entry.members:
        statistics.action_kinds["none"] += 1
        return
    actions = read_array(shard, entry, "actions")
    if actions.ndim == 1:
        statistics.action_kinds["discrete"] += 1
        statistics.discrete_action_counts.update(actions.tolist())
    elif entry.known_parts:
        parts = read_action_parts(meta["action_parts"])
        statistics.action_kinds["composite, " + ", ".join(part.name for part in parts)] += 1
        statistics.composite_actions.add(parts, entry.known_parts, actions)
    else:
        statistics.action_kinds[f"continuous, {format_count(actions.shape[1], 'dimension')}"] += 1
        statistics.continuous_actions.append(actions)


def _count_state(statistics: DatasetStatistics, state: NDArray[np.float32], meta: dict[str, Any]) -> None:
    """Update the range of every state variable with the states of an episode, float32 [T, S]."""
    names = tuple(meta.get("state_names") or ())
    names = names if len(names) == state.shape[1] else tuple(f"state_{i}" for i in range(state.shape[1]))
    low = state.min(axis=0)
    high = state.max(axis=0)
    if names in statistics.state_ranges:
        previous_low, previous_high = statistics.state_ranges[names]
        low = np.minimum(low, previous_low)
        high = np.maximum(high, previous_high)
    statistics.state_ranges[names] = low, high


def format_dataset_statistics(
    statistics: DatasetStatistics, shards: list[str], indices: list[ShardIndex]
) -> Iterator[str]:
    """Yield the lines to print."""
    size = sum(statistics.bytes.values())
    parts = ", ".join(f"{e} {format_size(n)}" for e, n in statistics.bytes.most_common())
    lengths = np.array(statistics.lengths or [0])
    place = ", read in place" if is_in_place(shards[0]) else ""
    yield f"shards         {len(shards)}, {format_size(size)} ({parts}){place}"
    yield f"content hash   {dataset_content_hash(indices)}"
    yield f"source         {_format_counter(statistics.sources)}"
    low, high, median = lengths.min(), lengths.max(), np.median(lengths)
    yield f"episodes       {statistics.episodes}, of {low} to {high} frames, median {median:g}"
    unknown = ", fps unknown" if 0 in statistics.fps else ""
    yield f"frames         {statistics.frames}, {statistics.hours:.2f} hours{unknown}"
    yield f"size           {_format_counter(statistics.sizes)}"
    yield f"fps            {_format_counter(Counter({f'{k:g}': v for k, v in statistics.fps.items()}))}"
    yield f"ends           {_format_counter(statistics.ending_counts)}"
    if statistics.episodes_with_rewards:
        mean = statistics.total_reward / statistics.episodes_with_rewards
        yield f"reward         {statistics.total_reward:g} in total, {mean:.3g} per episode"
    yield f"actions        {_format_counter(statistics.action_kinds)}"
    yield from _format_action_histogram(statistics)
    yield from statistics.composite_actions.format()
    yield from _format_state_ranges(statistics)


def _format_action_histogram(statistics: DatasetStatistics) -> Iterator[str]:
    """A bar for every discrete action; mean, standard deviation and range of every continuous dimension."""
    total = sum(statistics.discrete_action_counts.values())
    count = max([len(statistics.action_names), *(a + 1 for a in statistics.discrete_action_counts)]) if total else 0
    most = max(statistics.discrete_action_counts.values(), default=1)
    listed: Iterable[int] = range(count)
    if count > MAX_ACTION_LINES:
        listed = sorted(action for action, _ in statistics.discrete_action_counts.most_common(MAX_ACTION_LINES))
    for action in listed:
        times = statistics.discrete_action_counts[action]
        name = statistics.action_names[action] if 0 <= action < len(statistics.action_names) else ""
        bar = "#" * round(BAR_WIDTH * times / most)
        yield f"  {action:>3} {name:<14} {times:>9} {100 * times / total:5.1f}% {bar}"
    widths = sorted({v.shape[1] for v in statistics.continuous_actions})
    for width in widths:
        values = np.concatenate([v for v in statistics.continuous_actions if v.shape[1] == width])
        for d in range(width):
            v = values[:, d]
            name = f" ({statistics.action_names[d]})" if len(statistics.action_names) == width else ""
            yield f"  dimension {d}{name}: mean {v.mean():.3f}, std {v.std():.3f}, from {v.min():.3f} to {v.max():.3f}"


def _format_state_ranges(statistics: DatasetStatistics) -> Iterator[str]:
    """The ranges of the named state variables, and the number of those without a name."""
    for names, (low, high) in statistics.state_ranges.items():
        named = [d for d, name in enumerate(names) if not UNNAMED_STATE_PATTERN.fullmatch(name)]
        unnamed = len(names) - len(named)
        note = f", {unnamed} of them without a name" if named and unnamed else ""
        yield f"state          {len(names)} variables{note}"
        for d in named or range(len(names))[:MAX_STATE_LINES]:
            yield f"  {names[d]:<22} from {low[d]:.4g} to {high[d]:.4g}"
        if not named and unnamed > MAX_STATE_LINES:
            yield f"  and {unnamed - MAX_STATE_LINES} more"


def dataset_content_hash(indices: list[ShardIndex]) -> str:
    """Hash of the hashes of the shards, in their order. Equal data sets have equal hashes."""
    return hashlib.blake2b("".join(i.hash for i in indices).encode(), digest_size=16).hexdigest()


def _format_counter(counter: Counter[str]) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    shown = ", ".join(f"{name} ({count})" for name, count in counter.most_common(5))
    return shown + (f", {len(counter) - 5} more" if len(counter) > 5 else "")


def write_contact_sheet(shards: list[str], indices: list[ShardIndex], path: Path) -> None:
    """Write a PNG with evenly spaced frames of evenly spaced episodes of the data.

    Raises:
        ValueError: the shards hold no frames (only latents), or ``path`` does not end in ``.png``.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: a contact sheet is a PNG: name it .png")
    episodes = [(s, e) for s, index in zip(shards, indices, strict=True) for e in index.episodes]
    with_frames = [(s, e) for s, e in episodes if e.has_frames]
    if not with_frames:
        raise ValueError(f"{shards[0]}: the shards hold no frames to draw, only {sorted(episodes[0][1].members)}")
    rows = np.unique(np.linspace(0, len(with_frames) - 1, SHEET_ROWS).round().astype(int))
    chosen = [with_frames[i] for i in rows]
    sheet = Image.new("RGB", (SHEET_COLUMNS * (SHEET_SIDE + 2), len(chosen) * (SHEET_SIDE + 2)), (32, 32, 32))
    for row, (shard, entry) in enumerate(chosen):
        columns = np.linspace(0, entry.frames - 1, SHEET_COLUMNS).round().astype(int).tolist()
        for column, index in enumerate(columns):
            image = Image.fromarray(read_frames(shard, entry, [index])[0])
            image = image.resize(_fit_to_sheet(image.width, image.height), Image.Resampling.BOX)
            sheet.paste(image, (column * (SHEET_SIDE + 2) + 1, row * (SHEET_SIDE + 2) + 1))
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def _fit_to_sheet(width: int, height: int) -> tuple[int, int]:
    scale = SHEET_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
