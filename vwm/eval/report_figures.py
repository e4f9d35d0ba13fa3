"""The main figures of a report of ``vwm eval``, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vwm.eval.html_report import headline_rows


def report_figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the main figures of a report of ``vwm eval``: (name, value with unit, explanation)."""
    if "compounding" not in report:
        return headline_rows(dict(report))
    found = report["compounding"]
    rows = []
    for name, curve in found.items():
        if isinstance(curve, list):
            value = "none" if curve[-1] is None else f"{curve[-1]:.3f}"
            text = f"of {found['observed']}, in standard deviations of the truth"
            rows.append((f"{name.replace('_', ' ').capitalize()} at horizon {len(curve)}", value, text))
    return rows
