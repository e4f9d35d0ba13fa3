"""Compares a disturbed run with an undisturbed one: its global batches, losses and weights."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vwm.runs import RunFolder
from vwm.train.resume_points import find_resume_point, load_resume_point


def read_parts(run: Path) -> list[Any]:
    """Return the lines of all processes by time; one that is being written is left out."""
    lines = [line for file in (run / "parts").glob("*.jsonl") for line in file.read_text().split("\n")[:-1]]
    return sorted((json.loads(line) for line in lines), key=lambda part: part[6])


def read_batches(run: Path) -> dict[int, list[str]]:
    """Map each step to the hashes of its clips. Exits where a step that was repeated had other clips."""
    steps: dict[int, dict[int, str]] = {}
    for step, start, clips, *_ in read_parts(run):
        for place, clip in enumerate(clips, start):
            if steps.setdefault(step, {}).setdefault(place, clip) != clip:
                sys.exit(f"step {step}: clip {place} is another one in its repetition")
    return {step: [clip for _, clip in sorted(clips.items())] for step, clips in steps.items()}


def read_losses(run: Path) -> np.ndarray[Any, Any]:
    """Return the losses of all steps."""
    with (run / "metrics" / "train.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def compare(run: Path, expected: Path) -> str:
    """Compare batches, losses and weights of two runs; exits with what is wrong."""
    batches, others = read_batches(run), read_batches(expected)
    wrong = [step for step in others if batches.get(step) != others[step]]
    if wrong or batches.keys() != others.keys():
        sys.exit(f"other global batches at steps {wrong or sorted(batches.keys() ^ others.keys())}")
    losses, other_losses = read_losses(run), read_losses(expected)
    if len(losses) != len(other_losses):
        sys.exit(f"{len(losses)} losses were logged, not {len(other_losses)}")
    weights, other_weights = (
        load_resume_point(str(find_resume_point(RunFolder(path))))["state_dict"] for path in (run, expected)
    )
    difference = max(float((weights[name] - other_weights[name]).abs().max()) for name in weights)
    return (
        f"{len(batches)} global batches of {len(others[1])} clips, all equal to those of the uninterrupted run; losses "
        f"differ by {np.abs(losses / other_losses - 1).max():.1e} of their value at most, weights by {difference:.1e}"
    )
