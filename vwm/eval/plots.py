"""The plots of a report. Each function returns a figure, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vwm.eval.imagination_horizon import HorizonAdvice

MODEL_COLOR, COPY_COLOR, CEILING_COLOR, GRAY_COLOR = "#1f6fb4", "#d1662b", "#3a9a5b", "#6b6b6b"


def plot_compounding_error(rollout: dict[str, Any]) -> Figure:
    """Plot the quality of rollouts by horizon, with a copy of the last frame and the reconstruction as references."""
    figure = _make_figure(9.0, 3.4)
    for axes, name, label in zip(figure.subplots(1, 2), ("psnr", "ssim"), ("PSNR [dB]", "SSIM"), strict=True):
        _plot_curve(axes, rollout[f"{name}_tokenizer"], CEILING_COLOR, "tokenizer (ceiling)", "--")
        _plot_curve(axes, rollout[name], MODEL_COLOR, "rollout, own actions")
        _plot_curve(axes, rollout[f"{name}_random_actions"], GRAY_COLOR, "rollout, random actions", ":")
        _plot_curve(axes, rollout[f"{name}_copy_last"], COPY_COLOR, "copy of the last frame", "--")
        _format_horizon_axis(axes, label, rollout["horizon_seconds"][0])
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def plot_latent_error(compounding: dict[str, Any]) -> Figure:
    """Plot the errors of predicted observations and rewards of a compact world by horizon."""
    with_reward = compounding["reward_error"] is not None
    figure = _make_figure(9.0 if with_reward else 5.2, 3.4)
    panels = figure.subplots(1, 2 if with_reward else 1, squeeze=False)[0]
    _plot_curve(panels[0], compounding["error"], MODEL_COLOR, "own actions")
    _plot_curve(panels[0], compounding["error_random_actions"], GRAY_COLOR, "random actions", ":")
    _plot_curve(panels[0], compounding["error_copy_last"], COPY_COLOR, "copy of the last observation", "--")
    _format_horizon_axis(panels[0], f"error of {compounding['observed']} [standard deviations]")
    if with_reward:
        _plot_curve(panels[1], compounding["reward_error"], MODEL_COLOR, "own actions")
        _plot_curve(panels[1], compounding["reward_error_mean"], COPY_COLOR, "the mean reward", "--")
        _format_horizon_axis(panels[1], "error of rewards [standard deviations]")
    for axes in panels:
        axes.legend(frameon=False, fontsize=8)
    return figure


def plot_imagination_horizon(advice: HorizonAdvice, title: str) -> Figure:
    """Plot the errors of observations and returns by horizon, with the horizon that is proposed."""
    with_returns = bool(advice.return_error)
    figure = _make_figure(9.0 if with_returns else 5.2, 3.4)
    panels = figure.subplots(1, 2 if with_returns else 1, squeeze=False)[0]
    _plot_curve(panels[0], advice.error, MODEL_COLOR, "own actions")
    _plot_curve(panels[0], advice.error_random_actions, GRAY_COLOR, "random actions", ":")
    _plot_curve(panels[0], advice.error_copy, COPY_COLOR, "copy of the last observation", "--")
    _format_horizon_axis(panels[0], "squared error of observations [variances]")
    if with_returns:
        _plot_curve(panels[1], advice.return_error, MODEL_COLOR, "own actions")
        _plot_curve(panels[1], advice.return_error_mean, COPY_COLOR, "the mean return", "--")
        _format_horizon_axis(panels[1], "error of returns")
    for axes in panels:
        axes.axvline(advice.horizon, color="black", linewidth=0.8, linestyle="-.", label=f"horizon {advice.horizon}")
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_delta_psnr(control: dict[str, Any]) -> Figure:
    """Plot the gain of the recorded actions over random ones by horizon."""
    figure = _make_figure(5.2, 3.4)
    axes = figure.subplots()
    rows = control["delta_psnr_by_horizon"]
    mean, stderr = (np.array([np.nan if r[key] is None else r[key] for r in rows]) for key in ("mean", "stderr"))
    horizon = np.arange(1, len(rows) + 1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.errorbar(
        horizon,
        mean,
        np.nan_to_num(stderr),
        color=MODEL_COLOR,
        marker="o",
        markersize=4,
        capsize=3,
        label="mean of clips ± standard error",
    )
    _plot_curve(axes, control["delta_psnr_set_by_horizon"], GRAY_COLOR, "of the set's errors", ":")
    _format_horizon_axis(axes, "ΔPSNR, own − random actions [dB]")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_drift(drift: dict[str, Any]) -> Figure:
    """Plot the distance of generated to real frames by seconds, under each pattern of actions."""
    figure = _make_figure(6.4, 3.4)
    axes = figure.subplots()
    for values in drift["by_pattern"].values():
        axes.plot(range(1, len(values) + 1), values, color=MODEL_COLOR, alpha=0.3, linewidth=1)
    _plot_curve(axes, drift["mean_by_second"], MODEL_COLOR, "mean of the patterns")
    for value, color, label in (
        (drift["floor"], CEILING_COLOR, "reconstructed real frames (floor)"),
        (drift["mean_image"], COPY_COLOR, "mean image"),
    ):
        axes.axhline(value, color=color, linestyle="--", label=label)
    _format_horizon_axis(axes, "sliced Fréchet distance to real frames")
    axes.set_xlabel("seconds under held actions")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_codebook_usage(counts: ArrayLike, perplexity: float) -> Figure:
    """Plot how often the tokenizer's codes are used, the most frequent first."""
    share = np.sort(np.asarray(counts, float))[::-1]
    share = 100 * share / share.sum()
    used = int((share > 0).sum())
    figure = _make_figure(5.2, 3.4)
    axes = figure.subplots()
    axes.bar(np.arange(1, len(share) + 1), share, width=1.0, color=MODEL_COLOR)
    axes.axhline(100 / len(share), color=GRAY_COLOR, linestyle=":", label="uniform usage")
    axes.set_yscale("log")
    axes.set_xlim(0.5, len(share) + 0.5)
    axes.set_xlabel("code, by rank")
    axes.set_ylabel("share of tokens [%]")
    axes.set_title(f"{used} of {len(share)} codes used, perplexity {perplexity:.0f}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_action_table(table: ArrayLike, names: Sequence[str], bits: float) -> Figure:
    """Plot the distribution of recorded actions for each latent action; each row sums to 100 %."""
    counts = np.asarray(table, float)
    totals = counts.sum(axis=1, keepdims=True)
    share = 100 * counts / np.maximum(totals, 1)
    figure = _make_figure(2.2 + 0.5 * counts.shape[1], 1.8 + 0.34 * counts.shape[0])
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(counts.shape[1]), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    rows = [f"{i}  (n={int(n)})" for i, n in enumerate(totals[:, 0])]
    axes.set_yticks(range(counts.shape[0]), rows, fontsize=8)
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:
            axes.text(
                j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 55 else "black"
            )
    axes.set_xlabel("recorded action")
    axes.set_ylabel("latent action")
    axes.set_title(f"mutual information {bits:.2f} bits above chance", fontsize=10)
    figure.colorbar(image, label="share of the row [%]")
    return figure


def plot_step_latency(milliseconds: ArrayLike, p50: float, p95: float, fps: float) -> Figure:
    """Plot the distribution of step durations, with the frame interval of the recording."""
    figure = _make_figure(6.2, 3.4)
    axes = figure.subplots()
    axes.hist(np.asarray(milliseconds, float), bins=20, color=MODEL_COLOR)
    axes.axvline(p50, color="black", linewidth=1, label=f"median {p50:.1f} ms")
    axes.axvline(p95, color="black", linewidth=1, linestyle="--", label=f"95th percentile {p95:.1f} ms")
    axes.axvline(1000 / fps, color=COPY_COLOR, linewidth=1.5, label=f"real time, {fps:g} frames/s: {1000 / fps:.1f} ms")
    axes.set_xlabel("time of a step [ms]")
    axes.set_ylabel("steps")
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def plot_returns(
    means: Mapping[str, tuple[float, float, float]],
    normalized: Mapping[str, tuple[float, float, float] | None],
    title: str,
) -> Figure:
    """Plot mean returns (value, low, high) by name, the best on top, and normalized ones (random 0, real 1)."""
    names = sorted(means, key=lambda name: means[name][0])
    ratios = {name: known for name in names if (known := normalized.get(name)) is not None}
    figure = _make_figure(9.0 if ratios else 5.5, 1.2 + 0.45 * len(names))
    panels = figure.subplots(1, 2 if ratios else 1, squeeze=False)[0]
    _plot_intervals(panels[0], names, means, "mean return, 95% interval")
    if ratios:
        _plot_intervals(panels[1], list(ratios), ratios, "(return − random) / (real − random)")
        for place, style in ((0, ":"), (1, "--")):
            panels[1].axvline(place, color=GRAY_COLOR, linestyle=style, linewidth=1)
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_policy_ranking(
    real: Mapping[str, tuple[float, float, float]], imagined: Mapping[str, tuple[float, float, float]], title: str
) -> Figure:
    """Plot the mean return (value, low, high) of each policy in the world over that in the real environment."""
    figure = _make_figure(6.5, 5.0)
    axes = figure.subplots()
    for number, name in enumerate(real):
        (x, *x_bounds), (y, *y_bounds) = real[name], imagined[name]
        bars = [np.maximum([[value - low], [high - value]], 0) for value, low, high in ((x, *x_bounds), (y, *y_bounds))]
        axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", color=f"C{number % 10}", capsize=3, label=name)
    axes.set_xlabel("mean return in the real environment, 95% interval")
    axes.set_ylabel("mean return in the world, 95% interval")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=6)
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def plot_learning_curves(curves: Mapping[str, Sequence[Mapping[float, float]]], random: float, title: str) -> Figure:
    """Plot learning curves: a thin line per run, and the mean of each group where all its runs were evaluated.

    Args:
        curves: by group, one mapping per run from number of decisions to mean return.
        random: mean return of random actions.
        title: title of the figure.
    """
    figure = _make_figure(7.5, 4.2)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(curves.items()):
        color = f"C{number}"
        for run in runs:
            axes.plot(list(run), list(run.values()), color=color, linewidth=0.8, alpha=0.5)
        common = sorted(set.intersection(*(set(run) for run in runs)))
        means = [float(np.mean([run[step] for run in runs])) for step in common]
        axes.plot(common, means, "-o", color=color, markersize=3, label=f"{name} ({len(runs)})")
    axes.axhline(random, color=GRAY_COLOR, linestyle=":", label="random actions")
    axes.set_xlabel("decisions in training")
    axes.set_ylabel("return in evaluation")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def _plot_intervals(
    axes: Axes, names: Sequence[str], scores: Mapping[str, tuple[float, float, float]], label: str
) -> None:
    value, low, high = np.array([scores[name] for name in names]).T
    places = np.arange(len(names))
    # A percentile interval of very few episodes may exclude its value; error bars must not be negative.
    bars = np.maximum([value - low, high - value], 0)
    axes.errorbar(value, places, xerr=bars, fmt="o", color=MODEL_COLOR, capsize=4, markersize=6)
    axes.set_yticks(places, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _make_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _plot_curve(axes: Axes, values: Sequence[float | None], color: str, label: str, style: str = "-") -> None:
    known = [np.nan if v is None else v for v in values]
    axes.plot(range(1, len(known) + 1), known, style, color=color, marker="o", markersize=3, label=label)


def _format_horizon_axis(axes: Axes, label: str, seconds_per_frame: float | None = None) -> None:
    unit = "frames" if seconds_per_frame is None else f"frames of {seconds_per_frame:.3g} s"
    axes.set_xlabel(f"horizon [{unit} after the context]")
    axes.set_ylabel(label)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
