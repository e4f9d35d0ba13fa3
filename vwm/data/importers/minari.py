"""Minari's data sets, stored as HDF5: one group an episode, and the spaces of the environment as JSON."""

from __future__ import annotations

from pathlib import Path

from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.importers.hdf5 import Hdf5Source
from vwm.data.importers.minari_arrow import MinariArrowSource
from vwm.data.importers.source import ActionBounds, EpisodeSource
from vwm.data.importers.spaces import bounds_of_space


def open_minari(folder: Path) -> EpisodeSource:
    """Open a data set of Minari in its folder, ``~/.minari/datasets/NAME``, in any of its storage formats.

    Args:
        folder: which has ``data/metadata.json``.

    Raises:
        ValueError: the folder has no such data set, or one of an unknown storage format.
        ImportError: h5py or pyarrow, which the format requires, is not installed.
    """
    description = folder / "data" / "metadata.json"
    if not description.is_file():
        raise ValueError(f"{folder}: has no data/metadata.json; give the folder of one Minari data set")
    storage = read_json_object(description).get("data_format", "hdf5")
    if storage not in ("hdf5", "arrow", "parquet"):
        raise ValueError(f"{folder}: is stored as {storage}; Minari's data sets as hdf5, arrow and parquet are read")
    return MinariSource(folder) if storage == "hdf5" else MinariArrowSource(folder)


class MinariSource(Hdf5Source):
    """A data set of Minari that is stored as HDF5, in its folder.

    Args:
        folder: which has ``data/metadata.json`` and ``data/main_data.hdf5``.

    Raises:
        ValueError: the file is no HDF5 file.
        ImportError: h5py is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.description = read_json_object(folder / "data" / "metadata.json")
        super().__init__(folder / "data" / "main_data.hdf5")

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of the environment's action space, or the extremes of the actions where it has none."""
        space = parse_json_object(self.description.get("action_space") or "{}", "action_space")
        if space.get("type") != "Box":
            return None
        return bounds_of_space(space) or super().action_bounds()
