"""Results of an evolution of controllers: summaries, a table and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write
from vwm.runs.metric_tables import read_csv_rows
from vwm.runs.run_folder import RunFolder


def summarize_returns(returns: NDArray[np.float64], num_bootstrap: int = 2000) -> dict[str, Any]:
    """Return the mean with its 95% interval (bootstrap over episodes), the standard deviation, and every return."""
    means = np.random.default_rng(0).choice(returns, (num_bootstrap, len(returns))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "mean": float(returns.mean()), "low": float(low), "high": float(high), "std": float(returns.std()),
        "median": float(np.median(returns)), "episodes": len(returns), "returns": returns.tolist(),
    }  # fmt: skip


def format_evolution_results(results: dict[str, Any]) -> str:
    """Return a table of the results as text."""
    lines = [f"{'real return':20} {'mean':>9}  {'95% interval':>20} {'median':>9}  episodes"]
    for name, summary in results.items():
        interval = f"{summary['low']:.1f} to {summary['high']:.1f}"
        lines.append(
            f"{name:20} {summary['mean']:9.1f}  {interval:>20} {summary['median']:9.1f}  {summary['episodes']}"
        )
    return "\n".join(lines)


def plot_evolution(path: Path, run: RunFolder, inputs: Sequence[str]) -> None:
    """Plot the best, mean and worst fitness of every generation, and the returns of the distribution's mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(inputs), figsize=(7 * len(inputs), 4.5), sharey=True, squeeze=False)
    for name, axis in zip(inputs, axes[0], strict=True):
        rows, evaluated = (
            read_csv_rows(run.metrics / f"{name}_{table}.csv") for table in ("generations", "evaluations")
        )
        steps = [row["step"] for row in rows]
        axis.plot(steps, [row["mean"] for row in rows], label="mean of the population")
        low, high = ([row[key] for row in rows] for key in ("worst", "best"))
        axis.fill_between(steps, low, high, alpha=0.2, label="worst to best")
        for key, style, label in (("simulator", "o--", "simulator"), ("env", "s-", "real environment")):
            values = [row[key] for row in evaluated]
            axis.plot([row["step"] for row in evaluated], values, style, label=f"distribution's mean, {label}")
        axis.set(title=f"controller of {name.replace('_', ' ')}", xlabel="generation", ylabel="return")
        axis.legend()
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)
