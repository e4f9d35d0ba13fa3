"""The main figures of a report of ``vwm eval``, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vwm.eval.html_report import headline_rows

REPORT_FILE = "report.json"
"""In the folder of a report of ``vwm eval``, and in a bundle that carries its report."""


def report_figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the main figures of a report of ``vwm eval``: (name, value with unit, explanation).

    The speed of a machine that was busy with other work is left out: it says little about the world.
    """
    if "compounding" not in report:
        busy = any(note.startswith("the machine was busy") for note in report["notes"])
        rows = headline_rows(dict(report))
        return [row for row in rows if not (busy and row[0] in ("Step", "Frames per second"))]
    found = report["compounding"]
    rows = []
    for name, curve in found.items():
        if isinstance(curve, list):
            value = "none" if curve[-1] is None else f"{curve[-1]:.3f}"
            text = f"of {found['observed']}, in standard deviations of the truth"
            rows.append((f"{name.replace('_', ' ').capitalize()} at horizon {len(curve)}", value, text))
    return rows
