"""Minari's data sets, stored as HDF5: one group an episode, and the spaces of the environment as JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vwm.core.json_files import parse_json_object, read_json_object
from vwm.data.importers.hdf5 import Hdf5Source
from vwm.data.importers.source import ActionBounds


class MinariSource(Hdf5Source):
    """A data set of Minari in its folder, ``~/.minari/datasets/NAME``.

    Args:
        folder: which has ``data/metadata.json``.

    Raises:
        ValueError: the folder has no such data set, or one of another storage format.
        ImportError: h5py is not installed.
    """

    def __init__(self, folder: Path) -> None:
        description = folder / "data" / "metadata.json"
        if not description.is_file():
            raise ValueError(f"{folder}: has no data/metadata.json; give the folder of one Minari data set")
        self.description = read_json_object(description)
        storage = self.description.get("data_format", "hdf5")
        if storage != "hdf5":
            raise ValueError(f"{folder}: is stored as {storage}; only Minari's data sets stored as hdf5 are read")
        super().__init__(folder / "data" / "main_data.hdf5")

    def action_bounds(self) -> ActionBounds | None:
        """Return the bounds of the environment's action space, or the extremes of the actions where it has none."""
        space = parse_json_object(self.description.get("action_space") or "{}", "action_space")
        if space.get("type") != "Box":
            return None
        low, high = (np.array(space[name], float).reshape(-1) for name in ("low", "high"))
        return (
            ActionBounds(low, high) if np.isfinite(low).all() and np.isfinite(high).all() else super().action_bounds()
        )
