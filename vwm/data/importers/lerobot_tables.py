"""Rows of episodes in the parquet tables of LeRobot's data sets."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.data.recent_items import RecentItems

MAX_TABLE_BYTES = 256 * 2**20
"""Parts of tables that a process keeps of each data set. Files of version 3 hold 100 MB, of many episodes."""


class EpisodeTables:
    """Reads rows of episodes. Row groups are the unit of reading; those read last are kept, and no file stays open.

    Args:
        folder: of the data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._groups: RecentItems[Any] = RecentItems(MAX_TABLE_BYTES)
        self._ranges: RecentItems[list[tuple[float, float]]] = RecentItems(MAX_TABLE_BYTES // 16)

    def read_arrays(self, file: str, episode: int, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Return the numbers of an episode by column, [T, ...] each, in the order of the frames.

        Args:
            file: the table, relative to the folder.
            episode: number of the episode.
            columns: which are read.

        Raises:
            ValueError: the table is damaged, or has no such column.
        """
        table = self._find(file, episode, columns)
        return {name: np.empty(0) if table is None else _to_array(table.column(name)) for name in columns}

    def read_cells(self, file: str, episode: int, column: str) -> Any:
        """Return a column of an episode, such as its pictures, as an Arrow array in the order of the frames."""
        table = self._find(file, episode, (column,))
        if table is None:
            raise ValueError(f"{file}: has no rows of it")
        return table.column(column)

    def _find(self, file: str, episode: int, columns: tuple[str, ...]) -> Any:
        """Return the rows of an episode, in the order of its frames; None where there are none."""
        import pyarrow

        parts = []
        for group, (lowest, highest) in enumerate(self._ranges.get(file, functools.partial(self._read_ranges, file))):
            if lowest <= episode <= highest:
                read = functools.partial(self._read_group, file, group, columns)
                table = self._groups.get((file, group, columns), read)
                parts.append(table.take(np.flatnonzero(table.column("episode_index").to_numpy() == episode)))
        if not any(map(len, parts)):
            return None
        rows = pyarrow.concat_tables(parts)
        return rows.take(np.argsort(rows.column("frame_index").to_numpy(), kind="stable"))

    def _read_ranges(self, file: str) -> tuple[list[tuple[float, float]], int]:
        """Return the lowest and highest episode of each row group of a table."""
        metadata = _call_parquet("read_metadata", self.folder / file)
        leaves = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
        if "episode_index" not in leaves:
            raise ValueError(f"{file}: has no column episode_index")
        ranges = []
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group).column(leaves.index("episode_index")).statistics
            known = found is not None and found.has_min_max
            ranges.append((float(found.min), float(found.max)) if known else (-np.inf, np.inf))
        return ranges, 200 * len(ranges)

    def _read_group(self, file: str, group: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        names = list(dict.fromkeys(("episode_index", "frame_index", *columns)))
        table = _call_parquet("read_row_group", self.folder / file, group, names)
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise ValueError(f"{file}: has no column {missing[0]}")
        return table, table.nbytes


def read_parquet(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows of a small table.

    Raises:
        ValueError: it is damaged, or has no such column.
        ImportError: pyarrow is not installed.
    """
    rows: list[dict[str, Any]] = _call_parquet("read_table", file, columns).to_pylist()
    return rows


def _call_parquet(what: str, file: Path, *arguments: Any) -> Any:
    """Read a table, a row group of it or its metadata, in this thread: reader processes are forked."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("LeRobot's data sets require pyarrow: pip install 'vwm[lerobot]'") from error
    parquet: Any = pyarrow.parquet
    try:
        if what == "read_table":
            return parquet.read_table(file, columns=arguments[0], use_threads=False)
        with parquet.ParquetFile(file) as opened:
            return opened.metadata if what == "read_metadata" else opened.read_row_group(*arguments, use_threads=False)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file}: is no readable parquet table ({str(error).splitlines()[0]})") from error


def _to_array(column: Any) -> NDArray[Any]:
    """Return a column of numbers, or of lists of equally many, as [T] or [T, N]."""
    values, shape = column.combine_chunks(), [len(column)]
    while hasattr(values.type, "value_type"):
        values = values.flatten()
        shape.append(-1)
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if len(shape) == 1:
        return array
    if not len(column) or len(array) % len(column):
        raise ValueError(f"its rows have different numbers of values ({len(array)} in {len(column)} rows)")
    return array.reshape(len(column), -1)
