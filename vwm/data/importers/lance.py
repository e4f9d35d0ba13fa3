"""Lance tables of stable-worldmodel: a row a frame, ``episode_idx`` and ``step_idx``, pictures as JPEG or videos."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.importers.named_arrays import ACTIONS, REWARDS, STATES, TERMINATIONS, bounds_of
from vwm.data.importers.pictures import decode_picture
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.video import iterate_frames, open_video, probe_video

FRAMES_AT_ONCE = 64
MAX_TEXT = 4096
"""Longest text of an episode's own values that becomes metadata: scenes as XML are left out."""
TASKS = ("task", "instruction", "language_instruction")


class LanceSource(EpisodeSource):
    """A table ``NAME.lance``, or the folder that holds it, with the tables ``NAME_episodes`` and ``NAME_videos``.

    Tables that ``World.collect`` wrote have the reward and the end of a step in the row that the step leads to, where
    the first row has no reward, and no action in the last row. They are aligned here, and the last frame of such an
    episode, which no action leads away from, does not count.

    Args:
        path: of the table or folder.

    Raises:
        ValueError: there is no such table, or one of another layout.
        ImportError: pylance is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.place = _find_table(path)
        self.table = _open_table(self.place)
        names = self.table.schema.names
        missing = [name for name in ("episode_idx", "step_idx") if name not in names]
        if missing:
            raise ValueError(f"{self.place}: has no column {missing[0]}; its columns are {', '.join(names)}")
        videos = self.place.with_name(f"{self.place.stem}_videos.lance")
        self.videos = _open_table(videos) if videos.is_dir() else None
        pictures = [field.name for field in self.table.schema if str(field.type) in ("binary", "large_binary")]
        self.cameras = tuple(pictures + sorted({key for _, key in self._videos}))

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [f"episode {number}" for number in self._rows]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        number = int(name.removeprefix("episode "))
        rows, steps = self._rows[number]
        wrong = np.flatnonzero(steps != np.arange(len(steps)))
        if len(wrong):
            raise ValueError(f"step {wrong[0]} of its {len(steps)} is missing or stored twice")
        actions, rewards, ends, state = (
            self._take(rows, names) for names in (ACTIONS, REWARDS, TERMINATIONS, (*STATES, "proprio", "observation"))
        )
        length = len(rows)
        if rewards is not None and length and np.isnan(rewards[0, 0]):
            rewards, length = rewards[1:], len(rows) - 1
        if actions is not None and not _are_known(actions[-1:]).any():
            length = len(rows) - 1
        if actions is not None:
            actions = actions[:length, 0].astype(np.int64) if self._are_choices else actions[:length]
        meta = self._describe(number)
        return SourceEpisode(
            length=length,
            iterate_frames=lambda camera: itertools.islice(self._iterate_frames(number, rows, camera), length),
            actions=actions,
            rewards=None if rewards is None else rewards[:length].reshape(-1),
            state=None if state is None else state[:length],
            terminated=ends is not None and bool(ends[-1].any()),
            fps=self._find_fps(number),
            meta=meta,
        )

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of the actions of all episodes; None where they are choices."""
        actions = self._actions
        return None if actions is None or self._are_choices else bounds_of(actions)

    @functools.cached_property
    def _rows(self) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Places in the table and steps of each episode, in the order of the steps."""
        index = self.table.to_table(columns=["episode_idx", "step_idx"])
        episodes, steps = (index.column(name).to_numpy().astype(np.int64) for name in ("episode_idx", "step_idx"))
        order = np.lexsort((steps, episodes))
        numbers, starts = np.unique(episodes[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(numbers) else []
        return {int(number): (rows, steps[rows]) for number, rows in zip(numbers, parts, strict=True)}

    @functools.cached_property
    def _actions(self) -> NDArray[np.float64] | None:
        """All known actions of the table, [N, A]."""
        name = next((name for name in ACTIONS if name in self.table.schema.names), None)
        if name is None:
            return None
        actions = _to_rows(self.table.to_table(columns=[name]).column(name), name)
        return actions[_are_known(actions)]

    @functools.cached_property
    def _are_choices(self) -> bool:
        """Whether actions are choices: the writer makes numbers with a point of whole numbers too."""
        actions = self._actions
        if actions is None or actions.shape[1] != 1 or not len(actions):
            return False
        return bool((actions >= 0).all() and (actions == np.round(actions)).all())

    @functools.cached_property
    def _videos(self) -> dict[tuple[int, str], int]:
        """Row of each video, by the number of its episode and its camera."""
        if self.videos is None:
            return {}
        index = self.videos.to_table(columns=["episode_idx", "video_key"]).to_pydict()
        return {pair: row for row, pair in enumerate(zip(index["episode_idx"], index["video_key"], strict=True))}

    def _take(self, rows: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.float64] | None:
        """Return the first of these columns that there is, [T, N]."""
        name = next((name for name in names if name in self.table.schema.names), None)
        return None if name is None else _to_rows(self.table.take(rows.tolist(), columns=[name]).column(name), name)

    def _iterate_frames(self, number: int, rows: NDArray[np.int64], camera: str) -> Iterator[NDArray[np.uint8]]:
        if camera not in self.table.schema.names:
            with open_video(self._read_video(number, camera), camera) as container:
                yield from (pixels for _, pixels in iterate_frames(container, camera))
            return
        for start in range(0, len(rows), FRAMES_AT_ONCE):
            contents = self.table.take(rows[start : start + FRAMES_AT_ONCE].tolist(), columns=[camera]).column(camera)
            for step, content in enumerate(contents, start):
                yield decode_picture(content.as_py() or b"", f"{camera} {step}")

    def _read_video(self, number: int, camera: str) -> bytes:
        row = self._videos.get((number, camera))
        if row is None:
            raise ValueError(f"has no video {camera}")
        assert self.videos is not None
        (video,) = self.videos.take_blobs(blob_column="video_bytes", indices=[row])
        with video:
            content: bytes = video.read()
        return content

    def _find_fps(self, number: int) -> float | None:
        camera = next((key for episode, key in self._videos if episode == number), None)
        return None if camera is None else probe_video(self._read_video(number, camera), camera)["fps"] or None

    @functools.cached_property
    def _episode_values(self) -> dict[int, dict[str, Any]]:
        place = self.place.with_name(f"{self.place.stem}_episodes.lance")
        if not place.is_dir():
            return {}
        table = _open_table(place)
        plain = ("string", "large_string", "bool", "int", "double", "float")
        columns = [field.name for field in table.schema if str(field.type).startswith(plain)]
        return {row.pop("episode_idx"): row for row in table.to_table(columns=columns).to_pylist()}

    def _describe(self, number: int) -> dict[str, Any]:
        """Return the values of an episode as metadata, with the task in words where there is one."""
        values = {key: value for key, value in self._episode_values.get(number, {}).items() if value is not None}
        kept = {key: value for key, value in values.items() if not isinstance(value, str) or len(value) <= MAX_TEXT}
        task = next((kept.pop(key) for key in TASKS if isinstance(kept.get(key), str)), None)
        return ({"episode_data": kept} if kept else {}) | ({} if task is None else {"task": task})


def _find_table(path: Path) -> Path:
    if path.suffix == ".lance":
        return path
    found = sorted(p for p in path.glob("*.lance") if not p.stem.endswith(("_episodes", "_videos")))
    if len(found) != 1:
        listed = f"{len(found)} tables ({', '.join(p.name for p in found)}): choose one" if found else "no .lance table"
        raise ValueError(f"{path}: has {listed}")
    return found[0]


def _open_table(path: Path) -> Any:
    try:
        import lance
    except ImportError as error:
        raise ImportError("Lance tables require pylance: pip install 'vwm[lance]'") from error
    try:
        return lance.dataset(str(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: is no Lance table, or a damaged one ({str(error).splitlines()[0]})") from error


def _to_rows(column: Any, name: str) -> NDArray[np.float64]:
    """Return a column of numbers, or of lists of equally many, as [T, N]."""
    if column.null_count:
        raise ValueError(f"{name} has {column.null_count} rows without a value")
    values = column.combine_chunks()
    if hasattr(values.type, "value_type"):
        numbers = values.flatten().to_numpy(zero_copy_only=False)
        return numbers.astype(np.float64).reshape(len(column), -1)
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, 1)


def _are_known(actions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows are actions; that of a reset is not a number, or as whole number the lowest of int64."""
    return (np.isfinite(actions) & (actions > -9e18)).all(1)
