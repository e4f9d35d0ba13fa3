"""Metrics of a training: CSV tables, and the same numbers for other loggers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vwm.core.atomic_files import atomic_write_text
from vwm.core.full_disk import name_full_disk
from vwm.runs.metric_loggers import MetricLogger
from vwm.runs.run_folder import RunFolder

MetricRow = Mapping[str, float]


class MetricTable:
    """A CSV file that grows by rows. The first column is ``step``.

    A row may add new columns; earlier rows have empty cells there.

    Args:
        path: the file; its name without suffix is the table's name in other loggers.
        step: step of the checkpoint that a run resumes from; later rows are removed, since they are written again.
        loggers: get every row, too.
    """

    def __init__(self, path: Path, step: int = 0, loggers: Sequence[MetricLogger] = ()) -> None:
        self.path = path
        self.loggers = loggers
        self.columns: list[str] = []
        self._rewrite([row for row in _read_csv_cells(path) if float(row["step"]) <= step])

    def add(self, step: int, **values: float) -> None:
        """Append a row."""
        row = {"step": step, **values}
        if set(row) <= set(self.columns):
            with name_full_disk(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._rewrite([*_read_csv_cells(self.path), row])
        for logger in self.loggers:
            logger.log(self.path.stem, step, values)

    def rows(self) -> list[dict[str, float]]:
        """Read all rows; see ``read_csv_rows``."""
        return read_csv_rows(self.path)

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self.path, text.getvalue())


def open_metric_tables(
    run: RunFolder, names: Iterable[str], step: int, loggers: Sequence[MetricLogger] = ()
) -> dict[str, MetricTable]:
    """Open tables of a run, ``metrics/NAME.csv``, by their names; see ``MetricTable``."""
    return {name: MetricTable(run.metrics / f"{name}.csv", step, loggers) for name in names}


def read_csv_rows(path: Path) -> list[dict[str, float]]:
    """Read a table; [] where there is no file. Empty cells and a last line that was cut off are left out."""
    return [{name: float(value) for name, value in row.items()} for row in _read_csv_cells(path)]


def _read_csv_cells(path: Path) -> list[dict[str, str]]:
    """Read a table as text, so that it can be written again without a change of its numbers' format."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # A number that was cut off would be read as another number.
            whole = [line for line in file if line.endswith("\n")]
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(whole)]
        for row in rows:
            for value in (*row.values(), row["step"]):
                float(value)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: is no table of metrics ({error}): move it away, and the run goes on") from error
    return rows


def average_update_logs(
    sums: dict[str, tuple[float, int]], logs: Mapping[str, float], updated: int, every: int
) -> dict[str, float] | None:
    """Average the numbers of several updates to one row of a table.

    Args:
        sums: sum and count of each number over the updates since the last row; this update's are added in place.
        logs: numbers of this update; of a number that some updates do not have, the others count.
        updated: number of updates so far, including this one.
        every: number of updates per row.

    Returns:
        The means if the row is complete (the sums are then cleared), else None.
    """
    for name, value in logs.items():
        total, count = sums.get(name, (0.0, 0))
        sums[name] = total + value, count + 1
    if updated % every:
        return None
    means = {name: total / count for name, (total, count) in sums.items()}
    sums.clear()
    return means
