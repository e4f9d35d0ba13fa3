"""The numbers of a report by horizon, as a table: quality, gain over copying, effect of actions, another world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STANDARD_ERRORS = 2
"""How many standard errors from zero count as a difference."""


def horizon_header(report: dict[str, Any]) -> list[str]:
    """Return the names of the columns of ``horizon_rows``."""
    names = ["frames", "seconds", "PSNR", "copy", "gain over copy"]
    if report["control"] is not None:
        names.append("ΔPSNR")
    if report["comparison"] is not None:
        names += ["other world", "gain over it"]
    return names


def horizon_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return one row per horizon; PSNRs are of the set in dB, gains are means over clips with their standard error."""
    rollout, control, comparison = (report[key] for key in ("rollout", "control", "comparison"))
    rows = []
    for at, seconds in enumerate(rollout["horizon_seconds"]):
        row = [str(at + 1), f"{seconds:.2f}", *(_format(rollout[key][at]) for key in ("psnr", "psnr_copy_last"))]
        row.append(_format_estimate(rollout["gain_over_copy_by_horizon"][at]))
        if control is not None:
            row.append(_format_estimate(control["delta_psnr_by_horizon"][at]))
        if comparison is not None:
            row += [_format(comparison["psnr"][at]), _format_estimate(comparison["gain_by_horizon"][at])]
        rows.append(row)
    return rows


def format_horizon_table(report: dict[str, Any]) -> str:
    """Return the table as aligned text, at the horizons 1, 2, 4, 8, ... and the last one."""
    rows = horizon_rows(report)
    chosen = sorted({2**i - 1 for i in range(len(rows).bit_length())} | {len(rows) - 1})
    table = [horizon_header(report), *(rows[at] for at in chosen)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def count_clear_gains(estimates: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Count the horizons at which a mean is above zero, and below, by more than two standard errors."""
    known = [e for e in estimates if e["mean"] is not None and e["stderr"] is not None]
    return (
        sum(e["mean"] > STANDARD_ERRORS * e["stderr"] for e in known),
        sum(-e["mean"] > STANDARD_ERRORS * e["stderr"] for e in known),
    )


def _format(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _format_estimate(estimate: dict[str, Any]) -> str:
    return f"{_format(estimate['mean'])} ± {_format(estimate['stderr'])}"
