"""ArrayRecord files, by Google's array_record."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def count_array_records(file: Path) -> int:
    """Return the number of records of a file.

    Raises:
        ValueError: it cannot be read.
        ImportError: array_record is not installed.
    """
    return int(_open(file).num_records())


def read_array_record(file: Path, number: int) -> bytes:
    """Return one record of a file.

    Raises:
        ValueError: it cannot be read.
        ImportError: array_record is not installed.
    """
    try:
        return bytes(_open(file).read([number])[0])
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{file.name}: record {number} cannot be read ({error})") from error


def _open(file: Path) -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError("ArrayRecord files require array_record: pip install 'vwm[arrayrecord]'") from error
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        if not reader.ok():
            raise ValueError(f"{file.name}: is no ArrayRecord file, or a damaged one")
    except RuntimeError as error:
        raise ValueError(f"{file.name}: is no ArrayRecord file, or a damaged one ({error})") from error
    return reader
