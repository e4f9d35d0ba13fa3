"""Read the file of actions that accompanies a video (``walk.actions.npy`` or ``walk.actions.csv``)."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def action_file_paths(video: Path) -> tuple[Path, Path]:
    """The paths at which the actions of a video may be stored, in the order in which they are tried."""
    return video.with_suffix(".actions.npy"), video.with_suffix(".actions.csv")


def read_action_file(video: Path) -> NDArray[Any] | None:
    """Read the actions of a video: int64 [T], or float32 [T, A] in [-1, 1]; None if there is no file.

    Raises:
        ValueError: the file is invalid; the message names it.
    """
    path = next((path for path in action_file_paths(video) if path.exists()), None)
    if path is None:
        return None
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_csv(path)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path.name}: cannot be read ({error})") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{path.name}: is an archive of several arrays (npz); save the one array with numpy.save")
    if values.dtype.kind in "iub" and values.ndim == 1:
        if len(values) and int(values.min()) < 0:
            raise ValueError(f"{path.name}: discrete actions count from 0, found {values.min()}")
        return values.astype(np.int64)
    if values.dtype.kind in "iubf" and values.ndim in (1, 2):
        if not np.isfinite(values).all():
            raise ValueError(f"{path.name}: has values that are not finite")
        if len(values) and np.abs(values).max() > 1:
            raise ValueError(
                f"{path.name}: has values from {values.min():g} to {values.max():g}; scale them to [-1, 1]"
            )
        return values.reshape(len(values), -1).astype(np.float32)
    raise ValueError(f"{path.name}: must hold integers [T] or numbers [T, A], not {values.dtype} {list(values.shape)}")


def _read_csv(path: Path) -> NDArray[Any]:
    """Read comma-separated numbers, with or without a header line.

    A single column is discrete if it is written in whole numbers: 0.00 is continuous, whatever the other rows are.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    first_line = next(iter(lines), "")
    try:
        _ = [float(cell) for cell in first_line.split(",")]
        header_lines = 0
    except ValueError:
        header_lines = 1
    if not any(line.strip() for line in lines[header_lines:]):
        raise ValueError("it has no rows of numbers")
    values: NDArray[Any] = np.loadtxt(path, delimiter=",", ndmin=2, skiprows=header_lines)
    cells = [line.strip() for line in lines[header_lines:] if line.strip()]
    if values.shape[1] == 1 and all(re.fullmatch(r"[+-]?\d+", cell) for cell in cells):
        values = values[:, 0].astype(np.int64)
    return values
