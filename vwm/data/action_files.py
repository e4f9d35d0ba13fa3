"""Read the file of actions that accompanies a video (``walk.actions.npy`` or ``walk.actions.csv``).

Composite actions are stated by the header of a CSV file, one cell per column: ``choice5:weapon`` (of five choices),
``keys:move.left``, ``axes:wheel.steer``, ``pointer:mouse.x`` and ``pointer:mouse.y``; or, for either file, by
``walk.actions.json`` with ``action_parts``, as in the metadata of a recording.
"""

from __future__ import annotations

import json
import re
import tokenize
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart, check_part_names, read_action_parts
from vwm.core.spaces import ActionSpace
from vwm.data.action_metadata import known_action_parts

HEADER_PATTERN = re.compile(
    r"choice(?P<choices>\d{1,4}):(?P<choice>[^,]+)|(?P<kind>keys|axes|pointer):(?P<part>[^,]+)\.(?P<column>[^.,]+)"
)
"""A column of composite actions in the header of a CSV file."""


class VideoActions(NamedTuple):
    """The actions of a video.

    Attributes:
        values: int64 [T], or float32 [T, A], in [-1, 1] or of composite actions.
        meta: ``action_parts`` and ``unknown_action_parts`` of composite actions; empty for others.
    """

    values: NDArray[Any]
    meta: dict[str, Any]


def action_file_paths(video: Path) -> list[Path]:
    """The paths of the actions of a video, in the order in which they are tried, and last that of their parts."""
    return [video.with_suffix(f".actions.{suffix}") for suffix in ("npy", "csv", "json")]


def read_action_file(video: Path) -> VideoActions | None:
    """Read the actions of a video; None if there is no file.

    Raises:
        ValueError: a file is invalid; the message names it.
    """
    return read_actions(action_file_paths(video))


def read_actions(paths: list[Path]) -> VideoActions | None:
    """Read the actions of the first file that exists, and their parts from the last one; None if there is no file.

    Raises:
        ValueError: a file is invalid; the message names it.
    """
    *array_paths, parts_path = paths
    path = next((path for path in array_paths if path.exists()), None)
    if path is None:
        return None
    try:
        header, values = ([], np.load(path, allow_pickle=False)) if path.suffix == ".npy" else _read_csv(path)
        meta = _read_parts_file(parts_path) if parts_path.exists() else {}
        if any(HEADER_PATTERN.fullmatch(cell) for cell in header) and not meta:
            meta = {"action_parts": [part.to_json() for part in _parse_header(header)]}
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path.name}: cannot be read ({error})") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{path.name}: is an archive of several arrays (npz); save the one array with numpy.save")
    if meta:
        return _check_composite(path, values, meta)
    return VideoActions(_check_plain(path, values), {})


def format_action_table(space: ActionSpace, actions: NDArray[Any]) -> str:
    """Write actions, [T] or [T, A], as the text of a CSV file that ``read_action_file`` reads back."""
    if space.is_discrete:
        return "action\n" + "".join(f"{action}\n" for action in actions.tolist())
    header = [_plain(name) for name in space.names]
    if space.is_composite:
        header = []
        for part in space.parts:
            kind = f"choice{part.size}" if part.kind == "choice" else part.kind
            columns = [""] if part.kind == "choice" else ["." + _plain(name).replace(".", " ") for name in part.names]
            header += [f"{kind}:{_plain(part.name)}{column}" for column in columns]
    # Numbers with a point, so that a single dimension is not taken for choices.
    rows = [",".join(str(round(value, 7)) for value in row) for row in actions.tolist()]
    return "\n".join([",".join(header), *rows]) + "\n"


def _plain(name: str) -> str:
    """Return a name without the commas and line breaks that would end its cell."""
    return re.sub(r"[,\n\r]", " ", name) or "-"


def _check_composite(path: Path, values: NDArray[Any], meta: dict[str, Any]) -> VideoActions:
    """Check the values of composite actions against their parts."""
    try:
        if values.ndim == 1:
            values = values[:, None]
        known_action_parts(meta, values.shape)
        rows = np.ascontiguousarray(values, np.float32)
        ActionSpace.composite(*read_action_parts(meta["action_parts"])).check_rows(torch.from_numpy(rows))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    return VideoActions(rows, meta)


def _check_plain(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Check the values of discrete and continuous actions: int64 [T] or float32 [T, A]."""
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


def _read_parts_file(path: Path) -> dict[str, Any]:
    """Read the parts of composite actions. Raises ValueError where they are invalid."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(stated, dict) or not {"action_parts"} <= stated.keys() <= {
        "action_parts",
        "unknown_action_parts",
    }:
        raise ValueError(f"{path.name} must be an object with action_parts, and unknown_action_parts where some are")
    parts = read_action_parts(stated["action_parts"])
    return {**stated, "action_parts": [part.to_json() for part in parts]}


def _parse_header(header: list[str]) -> list[ActionPart]:
    """Read the parts of composite actions from the header of a CSV file; neighbors of one kind and name are one part.

    Raises:
        ValueError: a cell does not name a column.
    """
    columns = []
    for cell in header:
        match = HEADER_PATTERN.fullmatch(cell)
        if match is None:
            raise ValueError(
                f"header cell {cell!r}: columns of composite actions are called choice5:weapon, keys:move.left, "
                "axes:wheel.steer or pointer:mouse.x"
            )
        columns.append(match)
    parts = []
    for (kind, name), cells in groupby(columns, lambda match: match.group("kind", "part")):
        if kind is None:
            parts += [ActionPart("choice", int(cell["choices"]), cell["choice"]) for cell in cells]
        else:
            names = tuple(cell["column"] for cell in cells)
            parts.append(ActionPart(kind, len(names), name, () if kind == "pointer" else names))
    check_part_names(parts)
    return parts


def _read_csv(path: Path) -> tuple[list[str], NDArray[Any]]:
    """Read comma-separated numbers, with or without a header line; return its cells, and the numbers.

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
    return [cell.strip() for cell in first_line.split(",")] if header_lines else [], values
