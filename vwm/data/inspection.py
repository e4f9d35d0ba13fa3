"""`vwm data inspect`: what a folder of shards holds, in numbers and in one picture."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from vwm.data.shard_index import EpisodeIndexEntry, ShardIndex, list_shards, load_shard_index
from vwm.data.video import VIDEO_EXTENSIONS, decode_frames

SHEET_ROWS, SHEET_COLUMNS, SHEET_SIDE = 8, 10, 96
BAR_WIDTH = 40
MAX_STATE_LINES = 12
UNNAMED_STATE_PATTERN = re.compile(r"(ram|state)_\d+")


@dataclass
class DatasetStatistics:
    """What is counted over all shards."""

    episodes: int = 0
    frames: int = 0
    hours: float = 0.0
    sizes: Counter[str] = field(default_factory=Counter)
    fps: Counter[float] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    actions: Counter[int] = field(default_factory=Counter)
    action_names: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: float = 0.0
    rewarded: int = 0
    states: dict[tuple[str, ...], tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)


def inspect_dataset(path: Path, sheet: Path | None = None) -> None:
    """Print what shards hold; with --sheet, also draw some of it.

    Args:
        path: a folder of shards, one shard, or an fsspec address of either.
        sheet: a PNG to write: one episode a row, its frames from left to right.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: a shard cannot be understood; the message names it.
    """
    from tqdm import tqdm

    shards = list_shards(path)
    indices = [load_shard_index(shard) for shard in shards]
    census = DatasetStatistics()
    for shard, index in zip(tqdm(shards, unit="shard", desc="inspect", disable=None), indices, strict=True):
        _count_shard(census, shard, index)
    for line in format_dataset_statistics(census, shards, indices):
        print(line)
    if sheet is not None:
        write_contact_sheet(shards, indices, sheet)
        print(f"contact sheet  {sheet}")


def _count_shard(census: DatasetStatistics, shard: str, index: ShardIndex) -> None:
    with fsspec.open(shard, "rb") as file:
        for entry in index.episodes:
            census.episodes += 1
            census.frames += entry.frames
            census.lengths.append(entry.frames)
            census.hours += entry.frames / entry.fps / 3600 if entry.fps else 0
            census.sizes[f"{entry.height}x{entry.width}"] += 1
            census.fps[entry.fps] += 1
            for extension, (_, length) in entry.members.items():
                census.bytes[extension] += length
            meta = json.loads(_read_member(file, entry, "json")) if "json" in entry.members else {}
            census.sources[str(meta.get("source", "unknown"))] += 1
            census.action_names = census.action_names or list(meta.get("action_names") or [])
            census.ends["terminated" if meta.get("terminated") else "truncated"] += 1
            if "rewards.npy" in entry.members:
                rewards = np.load(io.BytesIO(_read_member(file, entry, "rewards.npy")))
                census.rewards += float(rewards.sum())
                census.rewarded += 1
            _count_actions(census, file, entry)
            if "state.npy" in entry.members:
                _count_state(census, np.load(io.BytesIO(_read_member(file, entry, "state.npy"))), meta)


def _count_actions(census: DatasetStatistics, file: Any, entry: EpisodeIndexEntry) -> None:
    if "actions.npy" not in entry.members:
        census.kinds["none"] += 1
        return
    actions = np.load(io.BytesIO(_read_member(file, entry, "actions.npy")))
    if actions.ndim == 1:
        census.kinds["discrete"] += 1
        census.actions.update(actions.tolist())
    else:
        census.kinds[f"continuous, {actions.shape[1]} dimensions"] += 1
        census.vectors.append(actions)


def _count_state(census: DatasetStatistics, state: NDArray[np.float32], meta: dict[str, Any]) -> None:
    """Widen the range of every number of the state, float32 [T, S]."""
    names = tuple(meta.get("state_names") or ())
    names = names if len(names) == state.shape[1] else tuple(f"state_{i}" for i in range(state.shape[1]))
    low, high = state.min(axis=0), state.max(axis=0)
    if names in census.states:
        before = census.states[names]
        low, high = np.minimum(low, before[0]), np.maximum(high, before[1])
    census.states[names] = low, high


def _read_member(file: Any, entry: EpisodeIndexEntry, extension: str) -> bytes:
    offset, length = entry.members[extension]
    file.seek(offset)
    data: bytes = file.read(length)
    return data


def format_dataset_statistics(census: DatasetStatistics, shards: list[str], indices: list[ShardIndex]) -> Iterator[str]:
    """The lines to print."""
    size = sum(census.bytes.values())
    parts = ", ".join(f"{e} {_format_bytes(n)}" for e, n in census.bytes.most_common())
    lengths = np.array(census.lengths or [0])
    yield f"shards         {len(shards)}, {_format_bytes(size)} ({parts})"
    yield f"content hash   {dataset_content_hash(indices)}"
    yield f"source         {_format_counter(census.sources)}"
    yield (
        f"episodes       {census.episodes}, of {lengths.min()} to {lengths.max()} frames, median {np.median(lengths):g}"
    )
    yield f"frames         {census.frames}, {census.hours:.2f} hours" + (", fps unknown" if 0 in census.fps else "")
    yield f"size           {_format_counter(census.sizes)}"
    yield f"fps            {_format_counter(Counter({f'{k:g}': v for k, v in census.fps.items()}))}"
    yield f"ends           {_format_counter(census.ends)}"
    if census.rewarded:
        yield f"reward         {census.rewards:g} in all, {census.rewards / census.rewarded:.3g} an episode"
    yield f"actions        {_format_counter(census.kinds)}"
    yield from _format_action_histogram(census)
    yield from _format_state_ranges(census)


def _format_action_histogram(census: DatasetStatistics) -> Iterator[str]:
    """A bar for every discrete action; mean, spread and range of every continuous one."""
    total = sum(census.actions.values())
    count = max([len(census.action_names), *(a + 1 for a in census.actions)]) if total else 0
    most = max(census.actions.values(), default=1)
    for action in range(count):
        times = census.actions[action]
        name = census.action_names[action] if action < len(census.action_names) else ""
        bar = "#" * round(BAR_WIDTH * times / most)
        yield f"  {action:>3} {name:<14} {times:>9} {100 * times / total:5.1f}% {bar}"
    widths = sorted({v.shape[1] for v in census.vectors})
    for width in widths:
        values = np.concatenate([v for v in census.vectors if v.shape[1] == width])
        for d in range(width):
            v = values[:, d]
            name = f" ({census.action_names[d]})" if len(census.action_names) == width else ""
            yield f"  dimension {d}{name}: mean {v.mean():.3f}, std {v.std():.3f}, from {v.min():.3f} to {v.max():.3f}"


def _format_state_ranges(census: DatasetStatistics) -> Iterator[str]:
    """The range of every number of the state that has a name, and how many have none."""
    for names, (low, high) in census.states.items():
        named = [d for d, name in enumerate(names) if not UNNAMED_STATE_PATTERN.fullmatch(name)]
        rest = len(names) - len(named)
        more = f", {rest} of them without a name" if named and rest else ""
        yield f"state          {len(names)} numbers{more}"
        for d in named or range(len(names))[:MAX_STATE_LINES]:
            yield f"  {names[d]:<22} from {low[d]:.4g} to {high[d]:.4g}"
        if not named and rest > MAX_STATE_LINES:
            yield f"  and {rest - MAX_STATE_LINES} more"


def dataset_content_hash(indices: list[ShardIndex]) -> str:
    """A hash of the shards' own hashes, in their order; equal data sets have equal ones."""
    return hashlib.blake2b("".join(i.hash for i in indices).encode(), digest_size=16).hexdigest()


def _format_counter(counter: Counter[str]) -> str:
    if len(counter) == 1:
        return next(iter(counter))
    shown = ", ".join(f"{name} ({times})" for name, times in counter.most_common(5))
    return shown + (f", {len(counter) - 5} more" if len(counter) > 5 else "")


def _format_bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.4g} GB"


# --------------------------------------------------------------------------------------------- contact sheet


def write_contact_sheet(shards: list[str], indices: list[ShardIndex], path: Path) -> None:
    """Write a PNG of some episodes spread over the data, each with frames spread over its time.

    Raises:
        ValueError: the shards hold no frames (only latents), or ``path`` is no PNG.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: a contact sheet is a PNG; name it .png")
    everything = [(s, e) for s, index in zip(shards, indices, strict=True) for e in index.episodes]
    shown = [(s, e) for s, e in everything if "frames.npy" in e.members or _video_member(e)]
    if not shown:
        raise ValueError(f"{shards[0]}: the shards hold no frames to draw, only {sorted(everything[0][1].members)}")
    chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, SHEET_ROWS).round().astype(int))]
    sheet = Image.new("RGB", (SHEET_COLUMNS * (SHEET_SIDE + 2), len(chosen) * (SHEET_SIDE + 2)), (32, 32, 32))
    for row, (shard, entry) in enumerate(chosen):
        numbers = np.linspace(0, entry.frames - 1, SHEET_COLUMNS).round().astype(int).tolist()
        for column, frame in enumerate(_read_sheet_frames(shard, entry, numbers)):
            image = Image.fromarray(frame)
            image = image.resize(_fit_to_sheet(image.width, image.height), Image.Resampling.BOX)
            sheet.paste(image, (column * (SHEET_SIDE + 2) + 1, row * (SHEET_SIDE + 2) + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    sheet.save(aside, "PNG")
    aside.replace(path)


def _fit_to_sheet(width: int, height: int) -> tuple[int, int]:
    scale = SHEET_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _video_member(entry: EpisodeIndexEntry) -> str | None:
    return next((e for e in entry.members if e in VIDEO_EXTENSIONS), None)


def _read_sheet_frames(shard: str, entry: EpisodeIndexEntry, numbers: list[int]) -> NDArray[np.uint8]:
    with fsspec.open(shard, "rb") as file:
        if "frames.npy" in entry.members:
            frames: NDArray[np.uint8] = np.load(io.BytesIO(_read_member(file, entry, "frames.npy")))[numbers]
            return frames
        extension = _video_member(entry)
        assert extension is not None
        return decode_frames(_read_member(file, entry, extension), numbers, f"{shard}:{entry.key}.{extension}")
