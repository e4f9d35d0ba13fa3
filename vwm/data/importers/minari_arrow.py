"""Minari's data sets, stored as Arrow or Parquet: one folder an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.importers.named_arrays import count_frames, find_cameras, make_episode
from vwm.data.importers.pictures import EncodedPictures
from vwm.data.importers.source import ActionBounds, EpisodeSource, SourceEpisode
from vwm.data.importers.spaces import bounds_of_space

COLUMNS = ("rewards", "terminations", "truncations")


class MinariArrowSource(EpisodeSource):
    """A data set of Minari that is stored as ``arrow`` or ``parquet``, in its folder.

    Args:
        folder: which has ``data/metadata.json``, and ``data/0`` and so on.

    Raises:
        ValueError: no episode can be read.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        self.description = read_json_object(self.folder / "metadata.json")
        self.format = str(self.description["data_format"])
        self.spaces = {
            name: parse_json_object(self.description.get(f"{name}_space") or "{}", f"{name}_space")
            for name in ("observation", "action")
        }
        problem = ValueError(f"{folder}: has no episodes")
        for name in self.episode_names():
            try:
                self.cameras = find_cameras(self._read_arrays(name))
                break
            except ValueError as error:
                problem = ValueError(f"{folder}: {name}: {error}")
        else:
            raise problem

    def episode_names(self) -> list[str]:
        """See ``EpisodeSource``: as in Minari's HDF5 files."""
        numbers = sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdecimal())
        return [f"episode_{number}" for number in numbers]

    def read(self, name: str) -> SourceEpisode:
        """See ``EpisodeSource``."""
        arrays = self._read_arrays(name)
        cameras = [camera for camera in self.cameras if camera in arrays]
        if not cameras:
            raise ValueError("has no pictures")
        return make_episode(arrays, self.cameras, slice(0, count_frames(arrays, cameras[0])))

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of the environment's action space, or the extremes of the actions where it has none."""
        found = bounds_of_space(self.spaces["action"])
        if found is not None or self.spaces["action"].get("type") != "Box":
            return found
        parts = []
        for name in self.episode_names():
            try:
                parts.append(ActionBounds.of(self._read_arrays(name)["actions"]))
            except ValueError:
                continue
        return ActionBounds.join(parts) if parts else None

    def _read_arrays(self, name: str) -> dict[str, Any]:
        """Return the arrays of an episode by name: observations, one more than actions, and the others."""
        try:
            import pyarrow
            import pyarrow.dataset
        except ImportError as error:
            raise ImportError("Minari's Arrow data sets require pyarrow: pip install 'vwm[lerobot]'") from error
        folder = self.folder / name.removeprefix("episode_")
        try:
            table = pyarrow.dataset.dataset(  # type: ignore[no-untyped-call]
                folder, format=self.format, ignore_prefixes=["_", ".", "metadata.json"]
            ).to_table()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"is no readable {self.format} table ({str(error).splitlines()[0]})") from error
        missing = [column for column in ("observations", "actions", *COLUMNS) if column not in table.column_names]
        if missing or len(table) < 2:
            raise ValueError(f"has no {missing[0]}" if missing else f"has {len(table)} rows")
        columns = {column: table.column(column).combine_chunks() for column in table.column_names}
        arrays = {column: columns[column][:-1].to_numpy(zero_copy_only=False) for column in COLUMNS}
        arrays |= _decode(self.spaces["action"], columns["actions"][:-1], "actions")
        return arrays | _decode(self.spaces["observation"], columns["observations"], "observations")


def _decode(space: dict[str, Any], values: Any, name: str) -> dict[str, Any]:
    """Return the arrays of a space by name, [T, ...] each; texts and lists of different lengths are left out."""
    import pyarrow

    if pyarrow.types.is_struct(values.type):
        parts = space.get("subspaces") or {}
        parts = parts if isinstance(parts, dict) else {str(i): part for i, part in enumerate(parts)}
        found: dict[str, Any] = {}
        for field in values.type:
            found |= _decode(parts.get(field.name) or {}, values.field(field.name), field.name)
        return found
    if pyarrow.types.is_binary(values.type) or pyarrow.types.is_large_binary(values.type):
        return {name: EncodedPictures([content or b"" for content in values.to_pylist()], name)}
    if pyarrow.types.is_fixed_size_list(values.type):
        numbers = values.flatten().to_numpy(zero_copy_only=False)
        return {name: numbers.reshape(len(values), *(space.get("shape") or [values.type.list_size]))}
    is_number = pyarrow.types.is_integer(values.type) or pyarrow.types.is_floating(values.type)
    return {name: values.to_numpy(zero_copy_only=False)} if is_number else {}
