"""Tables of estimates, as ``vwm estimate`` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vwm.train.estimate import Estimate, TrainingEstimates

UNITS = ("", "k", "M", "G", "T", "P", "E", "Z")


def format_estimates(estimates: TrainingEstimates, rows: Sequence[Estimate]) -> str:
    """Return all estimates of a training as text: what it is, and tables of memory, time and cost."""
    summary, cluster = estimates.summary(), estimates.cluster
    networks = ", ".join(f"{name} {count:,}" for name, count in summary["parameters"].items())
    lines = [
        f"parameters: {networks}",
        f"a clip: {summary['clip_frames']} frames, {short(estimates.operations)}FLOP, "
        f"{short(estimates.clip_bytes)}B in memory, about {short(estimates.stored_bytes)}B in shards",
        f"in {estimates.precision}, gradient checkpointing {estimates.recomputation}",
        *(f"note: {note}" for note in estimates.notes),
        "",
        "memory of the rank that needs the most, GB, uncompiled:",
        *_table([_memory_row(row, cluster.device_gigabytes) for row in rows]),
        "",
        f"time at {cluster.mfu:.0%} of {cluster.teraflops:g} TFLOP/s a device; all parts overlap:",
        *_table([_time_row(row) for row in rows]),
        "",
        f"one pass over {estimates.config['hours']:,.0f} hours of {estimates.config['fps']:g} frames a second:",
        *_table([_corpus_row(row) for row in rows]),
    ]
    return "\n".join(lines)


def _memory_row(row: Estimate, capacity: float) -> dict[str, str]:
    memory = row.memory.as_dict()
    cells = {"ranks": f"{row.mesh.ranks:,}", "mesh": str(row.mesh), "clips": str(row.clips)}
    cells |= {name: gigabytes(size) for name, size in memory.items() if name != "frozen"}
    cells["total"] += "" if memory["total"] <= capacity * 1e9 else f" (over {capacity:g})"
    return cells


def _time_row(row: Estimate) -> dict[str, str]:
    time, seconds = row.time, row.time.seconds
    return {
        "ranks": f"{row.mesh.ranks:,}",
        "global batch": f"{row.global_batch:,}",
        "passes": str(time.accumulation),
        "step s": f"{seconds:.3g}",
        "compute s": f"{time.compute:.3g}",
        "network s": f"{time.network:.3g}",
        "sent by a rank": f"{short(time.sent)}B",
        "loader clips/s": f"{row.global_batch / seconds:,.0f}",
        "read": f"{short(row.stored_bytes / seconds)}B/s",
        "first bottleneck": time.bottleneck,
    }


def _corpus_row(row: Estimate) -> dict[str, str]:
    corpus = row.corpus
    return {
        "ranks": f"{row.mesh.ranks:,}",
        "clips": short(corpus.clips),
        "steps": short(corpus.steps),
        "FLOP": f"{corpus.operations:.2e}",
        "days": f"{corpus.days:,.1f}",
        "device-hours": short(corpus.device_hours),
        "price": short(corpus.price),
        "stored TB": f"{corpus.stored_terabytes:,.0f}",
    }


def gigabytes(size: float) -> str:
    """Format bytes in GB with about three digits."""
    value = size / 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def short(value: float) -> str:
    """Format a number with three digits and a prefix of its unit: 1.23M."""
    power = 0
    while value >= 1000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{' ' if UNITS[power] else ''}{UNITS[power]}"


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    cells = [{name: name for name in names}, *rows]
    return ["  " + "  ".join(row[name].rjust(widths[name]) for name in names).rstrip() for row in cells]
