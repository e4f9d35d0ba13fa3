"""What a training writes down: tables that anyone can read, and the curves drawn from them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

MetricRow = Mapping[str, float]


class CSVLog:
    """A CSV file that grows by rows; the first row says which columns there are, and ``step`` is one of them.

    Args:
        path: the file.
        step: a resumed run's; rows written after it are taken out, for they will be written anew.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        rows = [row for row in self.rows() if row["step"] <= step]
        self.columns = list(rows[0]) if rows else None
        self.path.unlink(missing_ok=True)
        for row in rows:
            self._append(row)

    def add(self, step: int, **values: float) -> None:
        """A row. Raises ValueError for other columns than the first row's."""
        row = {"step": step, **values}
        self.columns = self.columns or list(row)
        if set(row) != set(self.columns):
            raise ValueError(f"{self.path}: has the columns {self.columns}, got a row of {list(row)}")
        self._append(row)

    def rows(self) -> list[dict[str, float]]:
        """All of it; see ``read_csv_rows``."""
        return read_csv_rows(self.path)

    def _append(self, row: MetricRow) -> None:
        assert self.columns is not None
        fresh = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if fresh:
                writer.writeheader()
            writer.writerow({**row, "step": int(row["step"])})


def read_csv_rows(path: Path) -> list[dict[str, float]]:
    """A table as it stands; none where there is no file. A line that was cut off in its writing is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        whole = [line for line in file if line.endswith("\n")]  # half a number is another number
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(whole)]


def average_update_logs(
    sums: dict[str, float], logs: Mapping[str, float], updated: int, every: int
) -> dict[str, float] | None:
    """The numbers of so many updates, averaged to one row of a table.

    Args:
        sums: of the updates before this one, which were not averaged yet; this one's are added, in place.
        logs: of this update.
        updated: how many there were, this one too.
        every: how many make a row.

    Returns:
        The means where the row is full, and the sums are emptied; else None.
    """
    for name, value in logs.items():
        sums[name] = sums.get(name, 0.0) + value
    if updated % every:
        return None
    means = {name: total / every for name, total in sums.items()}
    sums.clear()
    return means


def plot_run_curves(
    path: Path,
    episodes: Sequence[MetricRow],
    evaluations: Sequence[MetricRow],
    updates: Sequence[MetricRow],
    random: float,
    title: str,
) -> None:
    """Returns over decisions, in training and evaluation, beside random actions; and every logged number of learning.

    Args:
        path: of the PNG.
        episodes: with ``return`` of each training episode.
        evaluations: with ``mean``, ``low`` and ``high``; where there is ``imagined``, it is drawn, too.
        updates: any columns.
        random: mean return of random actions.
        title: over it all.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logged = [name for name in updates[0] if name != "step"] if updates else []
    rows = 1 + -(-len(logged) // 4)
    figure = plt.figure(figsize=(14, 4 + 2.2 * (rows - 1)), layout="constrained")
    grid = figure.add_gridspec(rows, 4, height_ratios=[2, *[1] * (rows - 1)])
    top = figure.add_subplot(grid[0, :])
    top.plot([r["step"] for r in episodes], [r["return"] for r in episodes], ".", alpha=0.3, ms=3, label="in training")
    steps = [r["step"] for r in evaluations]
    top.plot(steps, [r["mean"] for r in evaluations], "-o", ms=3, label="evaluation")
    top.fill_between(steps, [r["low"] for r in evaluations], [r["high"] for r in evaluations], alpha=0.25)
    if evaluations and "imagined" in evaluations[0]:
        imagined = [r["imagined"] for r in evaluations]
        top.plot(steps, imagined, "--s", ms=3, label="imagined: mean in training since the last")
    top.axhline(random, color="grey", ls=":", label="random actions")
    top.set(xlabel="decisions", ylabel="return")
    figure.suptitle(title, fontsize=9, wrap=True)
    top.legend()
    for place, name in enumerate(logged):
        axes = figure.add_subplot(grid[1 + place // 4, place % 4])
        axes.plot([r["step"] for r in updates], [r[name] for r in updates], lw=0.8)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    aside = path.with_suffix(".tmp")
    figure.savefig(aside, format="png", dpi=90)
    plt.close(figure)
    aside.rename(path)
