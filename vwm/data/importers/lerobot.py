"""LeRobot's data sets, versions 2.0, 2.1 and 3.0: parquet tables and one video for each camera.

Version 2 has a table and a video for each episode; version 3 joins episodes in larger files and lists in
``meta/episodes`` where each one lies. Frames of feature type ``image`` lie in the tables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.importers.lerobot_tables import EpisodeTables, read_parquet
from vwm.data.importers.pictures import decode_picture
from vwm.data.importers.source import ActionBounds, EpisodeSummary, SeekableSource, SourceEpisode
from vwm.data.video_packets import read_file_frames

FRAMES_AT_ONCE = 128
"""Frames of a video that are decoded together: those of 640x480 pixels take 118 MB."""


@dataclass(frozen=True)
class _Entry:
    """Where an episode lies: its table, and for each camera a video and the time at which the episode begins in it."""

    number: int
    length: int
    tasks: tuple[str, ...]
    table: str
    videos: dict[str, tuple[str, float]]

    @property
    def files(self) -> list[str]:
        """The table and the videos."""
        return [self.table, *(file for file, _ in self.videos.values())]


class LeRobotSource(SeekableSource):
    """A data set of LeRobot in a folder, as its hub or ``LeRobotDataset`` made it.

    Args:
        folder: which has ``meta/info.json``.

    Raises:
        ValueError: the folder has no such data set, or one of another version.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "meta" / "info.json").is_file():
            raise ValueError(f"{folder}: has no meta/info.json; give the folder of one LeRobot data set")
        self.info = read_json_object(folder / "meta" / "info.json")
        self.version = str(self.info.get("codebase_version"))
        if self.version not in ("v2.0", "v2.1", "v3.0"):
            raise ValueError(f"{folder}: is of version {self.version}; versions v2.0, v2.1 and v3.0 are read")
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.cameras = tuple(n for n, f in self.features.items() if f.get("dtype") in ("video", "image"))
        self.tables = EpisodeTables(folder)
        self.action_names, self.state_names = self._names("action"), self._names("observation.state")

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return list(self._entries)

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        entry = self._entries[name]
        columns = self._read_values(entry)
        length = len(columns["frame_index"])
        if length != entry.length:
            raise ValueError(f"{entry.table} has {length} frames of it, the description of the data set {entry.length}")
        actions = columns.get("action")
        if actions is not None:
            whole = actions.dtype.kind in "iu"
            actions = actions.reshape(length).astype(np.int64) if whole else actions.reshape(length, -1)
        state = columns.get("observation.state")
        reward, done = columns.get("next.reward"), columns.get("next.done")
        return SourceEpisode(
            length=length,
            iterate_frames=functools.partial(self._iterate_frames, entry),
            actions=actions,
            rewards=None if reward is None else reward.reshape(length),
            state=None if state is None else state.reshape(length, -1),
            terminated=done is not None and bool(done.reshape(-1)[-1]),
            fps=float(self.info["fps"]),
            meta={"task": "; ".join(entry.tasks)} if any(entry.tasks) else {},
        )

    def summarize(self) -> dict[str, EpisodeSummary]:
        """See ``SeekableSource``."""
        files = {file for entry in self._entries.values() for file in entry.files}
        sizes = {file: place.stat().st_size for file in files if (place := self.folder / file).is_file()}
        return {
            name: EpisodeSummary(entry.length, repr((entry, [sizes.get(file) for file in entry.files])))
            for name, entry in self._entries.items()
        }

    def files_of(self, name: str, cameras: Sequence[str]) -> list[Path]:
        """See ``SeekableSource``: without pictures outside of the table."""
        entry = self._entries[name]
        videos = [entry.videos[camera][0] for camera in cameras if camera in entry.videos]
        return [self.folder / file for file in (entry.table, *videos)]

    def read_frames(self, name: str, camera: str, indices: Sequence[int]) -> Iterable[NDArray[np.uint8]]:
        """See ``SeekableSource``."""
        entry = self._entries[name]
        if camera not in entry.videos:
            return self._read_images(entry, camera, indices)
        file, begin = entry.videos[camera]
        first = round(begin * float(self.info["fps"]))
        return read_file_frames(str(self.folder / file), [first + index for index in indices], file)

    def action_bounds(self) -> ActionBounds | None:
        """Return the extremes that the statistics of the data set state."""
        action = self.features.get("action")
        if action is None or not str(action.get("dtype")).startswith("float"):
            return None
        if self.version == "v2.1":
            stats = [line["stats"]["action"] for line in self._read_lines("episodes_stats.jsonl")]
        else:
            stats = [read_json_object(self.folder / "meta" / "stats.json")["action"]]
        return ActionBounds.join([ActionBounds(np.array(s["min"], float), np.array(s["max"], float)) for s in stats])

    @functools.cached_property
    def _entries(self) -> dict[str, _Entry]:
        entries = self._list_version_3() if self.version == "v3.0" else self._list_version_2()
        return {f"episode {entry.number}": entry for entry in sorted(entries, key=lambda entry: entry.number)}

    def _list_version_2(self) -> Iterator[_Entry]:
        videos = [c for c in self.cameras if self.features[c]["dtype"] == "video"]
        for row in self._read_lines("episodes.jsonl"):
            number = int(row["episode_index"])
            place = {"episode_index": number, "episode_chunk": number // int(self.info["chunks_size"])}
            yield _Entry(
                number,
                int(row["length"]),
                tuple(row.get("tasks") or ()),
                self._place("data_path", **place),
                {c: (self._place("video_path", video_key=c, **place), 0.0) for c in videos},
            )

    def _list_version_3(self) -> Iterator[_Entry]:
        videos = [c for c in self.cameras if self.features[c]["dtype"] == "video"]
        columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
        of_video = ("chunk_index", "file_index", "from_timestamp")
        columns += [f"videos/{camera}/{column}" for camera in videos for column in of_video]
        for file in sorted((self.folder / "meta" / "episodes").rglob("*.parquet")):
            for row in read_parquet(file, columns):
                table = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
                places = {camera: [row[f"videos/{camera}/{column}"] for column in of_video] for camera in videos}
                yield _Entry(
                    row["episode_index"],
                    row["length"],
                    tuple(row["tasks"] or ()),
                    self._place("data_path", **table),
                    {
                        c: (self._place("video_path", video_key=c, chunk_index=chunk, file_index=file), start)
                        for c, (chunk, file, start) in places.items()
                    },
                )

    def _place(self, template: str, **values: Any) -> str:
        """Return a path that the description states, inside of the folder."""
        try:
            return self._check_inside(str(self.info[template]).format(**values))
        except ValueError as error:
            raise ValueError(f"{self.folder}/meta/info.json: {template} {error}") from error

    @staticmethod
    def _check_inside(place: str) -> str:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ValueError(f"leads out of the folder ({place})")
        return place

    def _read_values(self, entry: _Entry) -> dict[str, NDArray[Any]]:
        """Return the numbers of an episode by column, [T, ...] each."""
        wanted = ("frame_index", "action", "observation.state", "next.reward", "next.done")
        return self.tables.read_arrays(entry.table, entry.number, tuple(c for c in wanted if c in self.features))

    def _iterate_frames(self, entry: _Entry, camera: str) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, entry.length, FRAMES_AT_ONCE):
            indices = range(start, min(start + FRAMES_AT_ONCE, entry.length))
            yield from self.read_frames(f"episode {entry.number}", camera, indices)

    def _read_images(self, entry: _Entry, camera: str, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        cells = self.tables.read_cells(entry.table, entry.number, camera)
        for index in indices:
            image = cells[index].as_py()
            yield decode_picture(image["bytes"] or self.folder / self._check_inside(image["path"]), f"{camera} {index}")

    def _read_lines(self, file: str) -> list[dict[str, Any]]:
        path = self.folder / "meta" / file
        return [parse_json_object(line, str(path)) for line in path.read_text().splitlines() if line.strip()]

    def _names(self, feature: str) -> tuple[str, ...]:
        """Return the names of a feature's dimensions, which some data sets put into a dict of one list."""
        names = self.features.get(feature, {}).get("names")
        if isinstance(names, dict):
            names = next(iter(names.values()), None)
        return tuple(map(str, names)) if isinstance(names, list) else ()
