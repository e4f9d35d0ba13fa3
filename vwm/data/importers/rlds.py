"""RLDS data sets as TensorFlow Datasets writes them (Open X-Embodiment), without TensorFlow.

``features.json`` describes an episode, whose ``steps`` are lists of all frames in one ``tf.train.Example``. Files are
TensorFlow's records, or ArrayRecord files.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.json_files import read_json_object
from vwm.data.importers.array_records import count_array_records, read_array_record
from vwm.data.importers.named_arrays import bounds_of, make_episode
from vwm.data.importers.pictures import EncodedPictures
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.importers.tf_example import FeatureValues, find_records, map_record, parse_example

STATES = ("state", "proprio", "robot_state")
"""Fields of observations that are taken for the state if one is there; otherwise all of few numbers are."""
MAX_STATE = 64


@dataclass(frozen=True)
class _Feature:
    """A field of a step.

    Attributes:
        path: its names, such as ``observation/image``.
        kind: ``image`` (encoded), ``text`` or ``tensor``.
        shape: of each step.
        dtype: as features.json names it.
        encoding: of tensors that are stored as bytes: ``bytes`` or ``zlib``, else ``none``.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str = "none"

    @property
    def is_camera(self) -> bool:
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] == 3

    @property
    def is_number(self) -> bool:
        return self.kind == "tensor" and self.dtype not in ("string", "object")


class RldsSource(EpisodeSource):
    """One version of a data set, with all of its splits.

    Args:
        folder: which has ``features.json``, or whose only folder has.

    Raises:
        ValueError: the folder has no such data set, or none of episodes.
        ImportError: it is stored as ArrayRecord, and array_record is not installed.
    """

    def __init__(self, folder: Path) -> None:
        found = sorted(folder.glob("features.json")) or sorted(folder.glob("*/features.json"))
        if len(found) != 1:
            versions = ", ".join(path.parent.name for path in found) or "none"
            raise ValueError(f"{folder}: has no features.json; give the folder of one version (found: {versions})")
        self.folder = found[0].parent
        self.features = _read_features(found[0])
        observed = {path: feature for path, feature in self.features.items() if path.split("/")[0] == "observation"}
        self._cameras = {_short(path): path for path, feature in observed.items() if feature.is_camera}
        self.cameras = tuple(self._cameras)
        self._actions = [f for path, f in self.features.items() if path.split("/")[0] == "action" and f.is_number]
        numbers = [f for f in observed.values() if f.is_number and not f.is_camera and len(f.shape) < 2]
        chosen = next((f for name in STATES for f in numbers if f.path.split("/")[-1] == name), None)
        self._states = [chosen] if chosen else [f for f in numbers if _size(f) <= MAX_STATE]
        self.action_names, self.state_names = _names(self._actions), _names(self._states)
        self._texts = [path for path, f in self.features.items() if "language_instruction" in path and f.kind == "text"]

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``."""
        return [f"{file}:{number}" for file in self._files for number in range(self._count(file))]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        cameras = list(self._cameras.values())
        flags = [n for n in ("reward", "is_terminal") if n in self.features]
        wanted = [*cameras, *flags, *self._texts, *(f.path for f in (*self._actions, *self._states))]
        values = self._parse(name, set(wanted))
        length = _count_steps(values, self.features)
        arrays: dict[str, Any] = {
            camera: self._pictures(values, path, length) for camera, path in self._cameras.items()
        }
        arrays |= {name: _to_array(values, self.features[name], length) for name in flags}
        arrays["terminated"] = arrays.pop("is_terminal", np.zeros(length, bool)).astype(bool)
        for key, features in (("actions", self._actions), ("state", self._states)):
            if features:
                arrays[key] = _join(values, features, length)
        texts = [value.decode(errors="replace") for path in self._texts for value in _bytes(values, path)]
        task = "; ".join(dict.fromkeys(text for text in texts if text))
        return make_episode(arrays, self.cameras, slice(0, length), meta={"task": task} if task else {})

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of all actions; the pictures between them are not read."""
        found = []
        for name in self.episode_names() if self._actions else ():
            try:
                values = self._parse(name, {feature.path for feature in self._actions})
                bounds = bounds_of(_join(values, self._actions, _count_steps(values, self.features)))
            except ValueError:  # named when it is read
                continue
            found += [] if bounds is None else [bounds]
        return ActionBounds.join(found) if found else None

    @functools.cached_property
    def _files(self) -> list[str]:
        files = sorted(p.name for p in self.folder.iterdir() if ".tfrecord" in p.name or ".array_record" in p.name)
        if not files:
            raise ValueError(f"{self.folder}: has no .tfrecord and no .array_record files")
        return files

    @functools.cached_property
    def _places(self) -> dict[str, list[tuple[int, int]]]:
        return {}

    def _count(self, file: str) -> int:
        """Return the number of episodes of a file; one that cannot be read counts as one, which is named."""
        try:
            return count_array_records(self.folder / file) if ".array_record" in file else len(self._find(file))
        except ValueError:
            return 1

    def _find(self, file: str) -> list[tuple[int, int]]:
        if file not in self._places:
            self._places[file] = find_records(self.folder / file)
        return self._places[file]

    def _parse(self, name: str, wanted: set[str]) -> dict[str, FeatureValues]:
        """Return fields of all steps of an episode."""
        file, number = name.rsplit(":", 1)
        if ".array_record" in file:
            record: memoryview | bytes = read_array_record(self.folder / file, int(number))
        else:
            record = map_record(self.folder / file, self._find(file)[int(number)])
        found = parse_example(record, {f"steps/{path}" for path in wanted})
        return {path.removeprefix("steps/"): values for path, values in found.items()}

    def _pictures(self, values: dict[str, FeatureValues], path: str, length: int) -> Any:
        feature = self.features[path]
        if feature.kind != "image":
            return _to_array(values, feature, length)
        contents = _bytes(values, path)
        if len(contents) != length:
            raise ValueError(f"{path} has {len(contents)} pictures for {length} steps")
        return EncodedPictures(contents, path)


def _read_features(file: Path) -> dict[str, _Feature]:
    """Return every field of a step by its path."""
    try:
        steps = read_json_object(file)["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return {feature.path: feature for feature in _walk(steps, "")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: describes no episodes with steps, as RLDS has them ({error!r})") from error


def _walk(node: dict[str, Any], path: str) -> Iterator[_Feature]:
    if "featuresDict" in node:
        for name, child in sorted(node["featuresDict"]["features"].items()):
            yield from _walk(child, f"{path}/{name}" if path else name)
        return
    kind = next((kind for kind in ("image", "text") if kind in node), "tensor")
    described = node.get(kind) or {}
    dimensions = (described.get("shape") or {}).get("dimensions") or ()
    dtype, encoding = str(described.get("dtype", "")), str(described.get("encoding", "none"))
    kind = "text" if kind == "tensor" and dtype in ("string", "object") else kind
    if kind == "image":
        dtype = dtype or "uint8"
    if kind in ("image", "text") or dtype:
        yield _Feature(path, kind, tuple(int(n) for n in dimensions), dtype, encoding)


def _bytes(values: dict[str, FeatureValues], path: str) -> list[bytes]:
    found = values.get(path)
    return found if isinstance(found, list) else []


def _count_steps(values: dict[str, FeatureValues], features: dict[str, _Feature]) -> int:
    """Return the number of steps, by the first field that tells it."""
    for path, found in values.items():
        feature = features[path]
        if feature.encoding == "none" or isinstance(found, list):
            return len(found) // (1 if isinstance(found, list) else max(_size(feature), 1))
    raise ValueError("has none of the fields that features.json describes")


def _to_array(values: dict[str, FeatureValues], feature: _Feature, length: int) -> NDArray[Any]:
    """Return a field of all steps, [T, ...]."""
    found = values.get(feature.path, [])
    shape = (length, *feature.shape)
    if isinstance(found, list) and feature.encoding in ("bytes", "zlib"):
        size = _size(feature) * np.dtype(feature.dtype).itemsize
        if feature.encoding == "zlib":
            found = [zlib.decompressobj().decompress(item, size) for item in found]
        array: NDArray[Any] = np.frombuffer(b"".join(found), feature.dtype)
    else:
        array = np.asarray(found)
    if array.size != np.prod(shape):
        raise ValueError(f"{feature.path} has {array.size} numbers for {length} steps of {list(feature.shape)}")
    whole = feature.dtype.startswith(("int", "uint", "bool"))
    return array.reshape(shape).astype(feature.dtype if whole or feature.encoding != "none" else np.float32)


def _join(values: dict[str, FeatureValues], features: list[_Feature], length: int) -> NDArray[Any]:
    """Return several fields side by side, [T, D]; one whole number stays one, [T]."""
    parts = [_to_array(values, feature, length) for feature in features]
    if len(parts) == 1 and parts[0].ndim == 1 and parts[0].dtype.kind in "iu":
        return parts[0]
    return np.concatenate([part.reshape(length, -1).astype(np.float32) for part in parts], axis=1)


def _names(features: list[_Feature]) -> tuple[str, ...]:
    """Return the names of the columns of several fields; of one field they are not known."""
    if len(features) < 2:
        return ()
    return tuple(_short(f.path) if not f.shape else f"{_short(f.path)}.{i}" for f in features for i in range(_size(f)))


def _size(feature: _Feature) -> int:
    return int(np.prod(feature.shape, dtype=int))


def _short(path: str) -> str:
    """Return a name without ``observation`` or ``action``, with dots."""
    return path.split("/", 1)[-1].replace("/", ".")
