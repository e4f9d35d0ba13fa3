"""The plots of a probe report. Each function returns a figure, or None where it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vwm.eval.plots import COPY_COLOR, GRAY_COLOR, MODEL_COLOR
from vwm.eval.probe_table import PROBE_TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROL_COLORS = {"random init": GRAY_COLOR, "pixels": COPY_COLOR}
MAX_PLOTTED_OUTPUTS = 48
"""Largest number of outputs in a plot; of more, those with the best scores of the model are shown."""


def plot_probe_scores(report: dict[str, Any]) -> Figure:
    """Plot the scores of all features, one bar per probe, with intervals."""
    rows, probes = report["rows"], list(report["rows"][0]["probes"])
    figure = _make_probe_figure(2.0 + 1.1 * len(probes) * max(1.0, 0.28 * len(rows)), 3.8)
    axes = figure.subplots()
    width = 0.84 / len(rows)
    for i, (row, color) in enumerate(zip(rows, _row_colors(rows), strict=True)):
        found = [row["probes"][probe]["score"] for probe in probes]
        _plot_bars(axes, np.arange(len(probes)) + (i - (len(rows) - 1) / 2) * width, found, width, color, row["name"])
    axes.set_xticks(range(len(probes)), [PROBE_TITLES[probe].replace(" ", "\n", 1) for probe in probes])
    axes.axhline(report["labels"]["chance"], color="black", linewidth=0.8, linestyle=":")
    _format_axes(axes, f"{report['labels']['score']} on test episodes")
    _clip_y_axis(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_scores_by_output(report: dict[str, Any]) -> Figure | None:
    """Plot R² of every number for each model and its controls, one panel per probe; None for classes."""
    labels, rows = report["labels"], report["rows"]
    if labels["kind"] != "numbers":
        return None
    probes = list(rows[0]["probes"])
    best = [
        max(_score_value(p["by_output"][i]) for p in rows[0]["probes"].values()) for i in range(len(labels["names"]))
    ]
    shown = sorted(np.argsort(best)[::-1][:MAX_PLOTTED_OUTPUTS].tolist())
    figure = _make_probe_figure(max(6.0, 1.5 + 0.3 * len(shown)), 2.2 * len(probes) + 1.0)
    panels = np.atleast_1d(figure.subplots(len(probes), 1, sharex=True))
    for axes, probe in zip(panels, probes, strict=True):
        for j, (row, color) in enumerate(zip(rows, _row_colors(rows), strict=True)):
            found = [row["probes"][probe]["by_output"][i] for i in shown]
            offset = (j - (len(rows) - 1) / 2) * 0.6 / len(rows)
            _plot_points(axes, np.arange(len(shown)) + offset, found, color, row["name"])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(PROBE_TITLES[probe], fontsize=9, loc="left")
        _format_axes(axes, "R²")
        _clip_y_axis(axes)
    names = [labels["names"][i] for i in shown]
    panels[-1].set_xticks(range(len(shown)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    panels[-1].set_xlim(-0.7, len(shown) - 0.3)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_probe_sweep(report: dict[str, Any]) -> Figure | None:
    """Plot the validation loss of every head of the sweeps by epoch, the selected one bold; None without a sweep."""
    rows = report["rows"]
    swept = [p for p in rows[0]["probes"] if rows[0]["probes"][p]["selected"][0]["val_losses"] is not None]
    if not swept:
        return None
    figure = _make_probe_figure(1.0 + 2.6 * len(rows), 1.0 + 2.4 * len(swept))
    panels = figure.subplots(len(swept), len(rows), squeeze=False, sharey="row", sharex=True)
    for line, probe in zip(panels, swept, strict=True):
        top = 0.0
        for axes, row in zip(line, rows, strict=True):
            found = row["probes"][probe]["selected"][0]
            top = max(top, _plot_sweep_losses(axes, found))
            axes.set_title(f"{row['name']}\n{_format_chosen(found)}", fontsize=7)
        line[0].set_ylim(top=top)  # a diverged head would compress the others
        line[0].set_ylabel(f"{PROBE_TITLES[probe]}:\nvalidation loss", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("epoch", fontsize=8)
    return figure


PROBE_PLOTS: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "probes.png": plot_probe_scores,
    "numbers.png": plot_scores_by_output,
    "sweep.png": plot_probe_sweep,
}


def _plot_sweep_losses(axes: Axes, found: dict[str, Any]) -> float:
    """Plot a sweep; return a suitable upper limit of the axis."""
    losses = np.array(found["val_losses"], float)  # None, of a diverged head, becomes NaN
    epochs = np.arange(1, len(losses) + 1)
    axes.plot(epochs, losses, color=GRAY_COLOR, linewidth=0.6, alpha=0.6)
    winner = int(np.nanargmin(np.nanmin(losses, axis=0)))
    axes.plot(epochs, losses[:, winner], color=MODEL_COLOR, linewidth=1.8)
    axes.plot(found["epoch"], losses[found["epoch"] - 1, winner], "o", color=MODEL_COLOR, markersize=4)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    return 1.2 * max(float(np.nanmedian(losses[0])), float(np.nanmin(losses)))


def _format_chosen(found: dict[str, Any]) -> str:
    return f"rate {found['learning_rate']:g}, decay {found['weight_decay']:g}, epoch {found['epoch']}"


def _plot_bars(axes: Axes, at: Any, found: list[dict[str, Any]], width: float, color: Any, label: str) -> None:
    axes.bar(at, [_score_value(f) for f in found], width * 0.92, color=color, label=label)
    axes.errorbar(
        at, [_score_value(f) for f in found], _error_bars(found), fmt="none", color="black", capsize=2, linewidth=0.9
    )


def _plot_points(axes: Axes, at: Any, found: list[dict[str, Any]], color: Any, label: str) -> None:
    values = [_score_value(f) for f in found]
    axes.errorbar(at, values, _error_bars(found), fmt="o", color=color, markersize=4, linewidth=0.9, label=label)


def _score_value(found: dict[str, Any]) -> float:
    return float("nan") if found["value"] is None else float(found["value"])


def _error_bars(found: list[dict[str, Any]]) -> Any:
    """Return the distances from the value to the bounds of its interval, at least 0."""
    sides = [
        (_score_value(f) - _score_value({"value": f["low"]}), _score_value({"value": f["high"]}) - _score_value(f))
        for f in found
    ]
    return np.nan_to_num(np.array(sides).T).clip(min=0)


def _row_colors(rows: list[dict[str, Any]]) -> list[Any]:
    """Return shades of blue for models, gray and orange for controls, lighter from one to the next of a role."""
    counts: dict[str, int] = {}
    colors = []
    for row in rows:
        seen = counts[row["role"]] = counts.get(row["role"], -1) + 1
        rgb = np.array([int((CONTROL_COLORS.get(row["role"], MODEL_COLOR))[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        colors.append(tuple(1 - (1 - rgb) * 0.72**seen))
    return colors


def _clip_y_axis(axes: Axes) -> None:
    """Limit the axis below, because scores far below chance would compress the others."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.0), min(high, 1.05))


def _format_axes(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


def _make_probe_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, 24.0), height), dpi=130, layout="constrained")
