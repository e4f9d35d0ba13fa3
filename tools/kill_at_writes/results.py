"""What a command left, as plain values that two runs can be compared by."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import torch

from vwm.runs.checkpoints import read_checkpoint
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import read_saved_config

TIMED = "second"
"""Part of the names of all measured times, which no two runs share."""
DRAWN_FROM_TIMES = {"curves.png"}


def folder_bytes(folder: Path) -> dict[str, str]:
    """Hash all files of a folder, the temporary ones included."""
    return {
        str(path.relative_to(folder)): _hash(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def training_state(home: Path) -> dict[str, Any]:
    """Return checkpoints, tables, videos and config of the run in ``home``, and the names of all other files there."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        name = str(path.relative_to(home))
        if path.suffix == ".ckpt":
            found |= {f"{name}:{key}": value for key, value in checkpoint_values(read_checkpoint(path)).items()}
        elif path.suffix == ".csv":
            found[name] = table_rows(path)
        else:
            found[name] = "" if path.name in DRAWN_FROM_TIMES else _hash(path.read_bytes())
    return found


def training_length(home: Path) -> dict[str, Any]:
    """Return how far a run came, and the names of its files: of trainings that do not resume bit-equal."""
    state = read_checkpoint(RunFolder(home / "run").last_checkpoint)["algorithm"]
    names = {str(path.relative_to(home)): "" for path in home.rglob("*") if path.is_file()}
    return {**names, "progress": state["progress"], "updates": state["updates"]}


def checkpoint_values(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested values by their paths, tensors as hashes."""
    if isinstance(value, dict):
        items = [(str(key), below) for key, below in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), below) for number, below in enumerate(value)]
    elif isinstance(value, torch.Tensor):
        return {path: _hash(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()) if value.numel() else ""}
    else:
        return {path: value if value == value else "nan"}
    return {
        name: leaf
        for key, below in items
        if TIMED not in key
        for name, leaf in checkpoint_values(below, f"{path}/{key}").items()
    }


def table_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metric table without the columns that measure time."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if TIMED not in name} for row in csv.DictReader(file)]


def check_run(folder: Path, must_exist: bool = False) -> None:
    """Read the config and all checkpoints that a killed training left. Raises the readers' errors."""
    run = RunFolder(folder)
    if must_exist or run.config.exists():
        read_saved_config(run)
    for path in {*run.checkpoints.glob("[!.]*.ckpt"), *([run.last_checkpoint] if must_exist else ())}:
        read_checkpoint(path)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
