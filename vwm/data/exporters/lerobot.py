"""LeRobot's data sets, version 3.0: a table and a video of each camera for each shard, and their description.

The layout is that of ``lerobot`` 0.4: ``data`` (numbers of every frame), ``videos``, ``meta/episodes`` (where each
episode lies, and its statistics), ``meta/tasks.parquet``, ``meta/stats.json`` and ``meta/info.json``.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write, atomic_write_text
from vwm.data.exporters.dataset_exporter import DatasetExporter, ExportShard
from vwm.data.exporters.lerobot_statistics import (
    SAMPLED_FRAMES,
    FeatureStatistics,
    describe_numbers,
    describe_pictures,
    join_statistics,
    thin_out,
)
from vwm.data.exporters.stored_episode import StoredEpisode, read_stored_episode, shorten_camera_names
from vwm.data.shard_reading import read_episode_metadata
from vwm.data.video_encoding import FrameEncoder

FILES_PER_CHUNK = 1_000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_COUNTERS = ("frame_index", "episode_index", "index", "task_index")


class LeRobotExporter(DatasetExporter):
    """Writes version 3.0 of LeRobot's format. ``meta/info.json``, without which it does not open, is written last.

    Raises:
        ImportError: pyarrow is not installed.
    """

    def __init__(self, out: Path, shards: list[ExportShard], fps: float | None) -> None:
        super().__init__(out, shards, fps)
        _import_pyarrow()
        first = read_stored_episode(shards[0].path, shards[0].episodes[0], fps)
        self.features = describe_features(first)
        self.rate = int(first.fps) if first.fps == int(first.fps) else first.fps
        tasks = [_task(read_episode_metadata(shard.path, entry)) for shard in shards for entry in shard.episodes]
        self.tasks = {task: number for number, task in enumerate(dict.fromkeys(tasks))}

    def is_written(self, shard: ExportShard) -> bool:
        """See ``DatasetExporter``. The list of its episodes is written after all else of a shard."""
        return self._path(EPISODES_PATH, shard).is_file()

    def begin(self) -> None:
        """See ``DatasetExporter``. A data set that is being extended cannot be opened."""
        (self.out / "meta" / "info.json").unlink(missing_ok=True)

    def write(self, shard: ExportShard) -> None:
        """See ``DatasetExporter``."""
        episodes = [self._read(shard, number) for number in range(len(shard.episodes))]
        pictures = self._write_videos(shard, episodes)
        index, columns, rows = shard.first_frame, [], []
        for number, episode in enumerate(episodes):
            columns.append(self._number_columns(episode, shard.first_episode + number, index))
            statistics = {name: describe_numbers(values) for name, values in columns[-1].items()}
            statistics |= {name: describe_pictures(samples) for name, samples in pictures[number].items()}
            rows.append(self._episode_row(shard, number, episode, index, statistics))
            index += episode.entry.frames
        table = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
        _write_parquet(self._path(DATA_PATH, shard), {name: _to_arrow(values) for name, values in table.items()})
        _write_parquet(self._path(EPISODES_PATH, shard), {name: [row[name] for row in rows] for name in rows[0]})

    def finish(self) -> None:
        """See ``DatasetExporter``."""
        _write_parquet(
            self.out / "meta" / "tasks.parquet",
            {"task_index": list(self.tasks.values()), "__index_level_0__": list(self.tasks)},
            index_column="__index_level_0__",
        )
        statistics = {name: join_statistics(parts) for name, parts in self._read_statistics().items()}
        values = {name: {key: value.tolist() for key, value in found.items()} for name, found in statistics.items()}
        atomic_write_text(self.out / "meta" / "stats.json", json.dumps(values, indent=1) + "\n")
        episodes = sum(len(shard.episodes) for shard in self.shards)
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": sum(shard.frames for shard in self.shards),
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.rate,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self.features,
        }
        atomic_write_text(self.out / "meta" / "info.json", json.dumps(info, indent=1) + "\n")

    def _read(self, shard: ExportShard, number: int) -> StoredEpisode:
        episode = read_stored_episode(shard.path, shard.episodes[number], self.fps)
        found = describe_features(episode)
        place = f"{shard.path}:{episode.entry.key}"
        if episode.fps != self.rate:
            raise ValueError(f"{place}: has {episode.fps:g} frames per second, the first episode {self.rate:g}")
        for name in {**self.features, **found}:
            if found.get(name) != self.features.get(name):
                raise ValueError(
                    f"{place}: {name} is {_shape(found, name)}, in the first episode {_shape(self.features, name)}; "
                    "LeRobot's format requires the same of all"
                )
        return episode

    def _write_videos(self, shard: ExportShard, episodes: list[StoredEpisode]) -> list[dict[str, list[Any]]]:
        """Write all episodes one after the other; return pictures for the statistics of each."""
        names = camera_features(episodes[0])
        samples: list[dict[str, list[Any]]] = [{name: [] for name in names.values()} for _ in episodes]
        with ExitStack() as stack:
            encoders = {}
            for camera, name in names.items():
                file = stack.enter_context(atomic_write(self._path(VIDEO_PATH, shard, video_key=name)))
                height, width, _ = self.features[name]["shape"]
                encoders[camera] = stack.enter_context(FrameEncoder(file, height, width, self.rate))
            for number, episode in enumerate(episodes):
                every = -(-episode.entry.frames // SAMPLED_FRAMES)
                for i, views in enumerate(episode.iterate_views()):
                    for camera, pixels in views.items():
                        encoders[camera].write(pixels)
                        if i % every == 0:
                            samples[number][names[camera]].append(thin_out(pixels))
        return samples

    def _number_columns(self, episode: StoredEpisode, number: int, index: int) -> dict[str, NDArray[Any]]:
        """Return the rows of an episode in the table, [T] or [T, D] each."""
        time = np.arange(episode.entry.frames)
        columns = {
            "action": episode.actions,
            "observation.state": episode.state,
            "next.reward": episode.rewards,
            "next.done": (time == len(time) - 1) & episode.terminated,
            "timestamp": (time / episode.fps).astype(np.float32),
            "frame_index": time,
            "episode_index": np.full(len(time), number),
            "index": index + time,
            "task_index": np.full(len(time), self.tasks[_task(episode.meta)]),
        }
        return {
            name: np.asarray(values, self.features[name]["dtype"])
            for name, values in columns.items()
            if values is not None
        }

    def _episode_row(
        self,
        shard: ExportShard,
        number: int,
        episode: StoredEpisode,
        index: int,
        statistics: dict[str, FeatureStatistics],
    ) -> dict[str, Any]:
        chunk = _place(shard)
        row: dict[str, Any] = {
            "episode_index": shard.first_episode + number,
            "tasks": [_task(episode.meta)],
            "length": episode.entry.frames,
            **{f"data/{key}": value for key, value in chunk.items()},
            "dataset_from_index": index,
            "dataset_to_index": index + episode.entry.frames,
        }
        begin = index - shard.first_frame
        for name in camera_features(episode).values():
            row |= {f"videos/{name}/{key}": value for key, value in chunk.items()}
            row[f"videos/{name}/from_timestamp"] = begin / episode.fps
            row[f"videos/{name}/to_timestamp"] = (begin + episode.entry.frames) / episode.fps
        for name, found in statistics.items():
            row |= {f"stats/{name}/{key}": value.tolist() for key, value in found.items()}
        return row | {f"meta/episodes/{key}": value for key, value in chunk.items()}

    def _read_statistics(self) -> dict[str, list[dict[str, Any]]]:
        """Return the statistics of every episode by feature."""
        parquet = _import_pyarrow()
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.features}
        for shard in self.shards:
            for row in parquet.read_table(self._path(EPISODES_PATH, shard)).to_pylist():
                for name, parts in found.items():
                    start = f"stats/{name}/"
                    parts.append({key.removeprefix(start): row[key] for key in row if key.startswith(start)})
        return found

    def _path(self, template: str, shard: ExportShard, **more: str) -> Path:
        return self.out / template.format(**_place(shard), **more)


def _place(shard: ExportShard) -> dict[str, int]:
    """Return where the files of a shard are."""
    chunk, file = divmod(shard.number, FILES_PER_CHUNK)
    return {"chunk_index": chunk, "file_index": file}


def camera_features(episode: StoredEpisode) -> dict[str, str]:
    """Return the feature of each camera: ``observation.image``, or ``observation.images.NAME`` where it has a name."""
    if list(episode.cameras) == ["camera"]:
        return {"camera": "observation.image"}
    return {
        camera: f"observation.images.{name}" for camera, name in shorten_camera_names(list(episode.cameras)).items()
    }


def describe_features(episode: StoredEpisode) -> dict[str, dict[str, Any]]:
    """Return the features of ``meta/info.json`` that an episode has."""
    features: dict[str, dict[str, Any]] = {}
    for camera, name in camera_features(episode).items():
        columns = episode.cameras[camera]
        features[name] = _describe_video(episode.entry.height, columns.stop - columns.start, episode.fps)
    if episode.state is not None:
        features["observation.state"] = _feature("float32", episode.state, episode.state_names)
    if episode.actions is not None:
        kind = "int64" if episode.actions.ndim == 1 else "float32"
        features["action"] = _feature(kind, episode.actions, episode.action_names)
    if episode.rewards is not None:
        features["next.reward"] = _feature("float32", episode.rewards)
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | {name: {"dtype": "int64", "shape": [1], "names": None} for name in _COUNTERS}


def _feature(kind: str, values: NDArray[Any], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": [1 if values.ndim == 1 else values.shape[1]], "names": names}


def _describe_video(height: int, width: int, fps: float) -> dict[str, Any]:
    info = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": info}


def _task(meta: dict[str, Any]) -> str:
    """Return the instruction of an episode, or its caption; empty if it has neither."""
    return str(meta.get("task") or meta.get("caption") or "")


def _shape(features: dict[str, dict[str, Any]], name: str) -> str:
    if name not in features:
        return "missing"
    return f"{features[name]['dtype']} {features[name]['shape']} {features[name]['names'] or ''}".rstrip()


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("LeRobot's format requires pyarrow: pip install 'vwm[lerobot]'") from error
    return pyarrow.parquet


def _to_arrow(values: NDArray[Any]) -> Any:
    """Return a column: numbers, or lists of as many numbers each."""
    import pyarrow

    if values.ndim == 1 or values.shape[1] == 1:
        return pyarrow.array(values.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])


def _write_parquet(path: Path, columns: dict[str, Any], index_column: str | None = None) -> None:
    """Write a table; pandas reads ``index_column`` as the index of its rows."""
    parquet = _import_pyarrow()
    import pyarrow

    table = pyarrow.table(columns)
    if index_column is not None:
        described = [
            {
                "name": None if n == index_column else n,
                "field_name": n,
                "pandas_type": k,
                "numpy_type": t,
                "metadata": None,
            }
            for n, k, t in (("task_index", "int64", "int64"), (index_column, "unicode", "object"))
        ]
        text = {"index_columns": [index_column], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(text)})
    with atomic_write(path) as file:
        parquet.write_table(table, file)
