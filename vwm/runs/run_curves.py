"""The learning curves of an agent's run, as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vwm.core.atomic_files import atomic_write
from vwm.runs.metric_tables import MetricRow


def plot_run_curves(
    path: Path,
    episodes: Sequence[MetricRow],
    evaluations: Sequence[MetricRow],
    updates: Sequence[MetricRow],
    random: float,
    title: str,
) -> None:
    """Draw returns over decisions, in training and evaluation, with random actions, and every logged number of updates.

    Args:
        path: path of the PNG.
        episodes: rows with the ``return`` of each training episode.
        evaluations: rows with ``mean``, ``low`` and ``high``, and ``imagined`` where there is such a column.
        updates: rows with any columns, which need not be the same.
        random: mean return of random actions.
        title: title of the figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logged = [name for name in dict.fromkeys(name for row in updates for name in row) if name != "step"]
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
        top.plot(steps, imagined, "--s", ms=3, label="imagined")
    top.axhline(random, color="gray", ls=":", label="random actions")
    top.set(xlabel="decisions", ylabel="return")
    figure.suptitle(title, fontsize=9, wrap=True)
    top.legend()
    for index, name in enumerate(logged):
        axes = figure.add_subplot(grid[1 + index // 4, index % 4])
        with_name = [r for r in updates if name in r]
        axes.plot([r["step"] for r in with_name], [r[name] for r in with_name], lw=0.8)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)
