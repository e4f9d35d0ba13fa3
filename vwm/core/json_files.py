"""JSON objects from files that may be broken or come from somebody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_json_object(text: str | bytes, name: str, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: UTF-8.
        name: of the file, for errors.
        error: the kind of error.

    Raises:
        ValueError: it is not JSON, nested too deep, or no object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f"{name}: not JSON ({cause})") from cause
    if not isinstance(found, dict):
        raise error(f"{name}: must hold an object, not {type(found).__name__}")
    return found


def read_json_object(file: Path, max_bytes: int | None = None, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        file: to read.
        max_bytes: refuses a larger file; None reads any.
        error: the kind of error.

    Raises:
        ValueError: see ``parse_json_object``, or the file is too large.
    """
    size = file.stat().st_size
    if max_bytes is not None and size > max_bytes:
        raise error(f"{file}: {size} bytes are too large, at most {max_bytes}")
    return parse_json_object(file.read_bytes(), str(file), error)
