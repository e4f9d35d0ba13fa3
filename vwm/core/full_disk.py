"""Name the file for which a disk was too small, whatever library was writing it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def name_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a full disk into an OSError that names a file or folder.

    Python names none when a write fails; PyTorch raises a RuntimeError about positions in the file, and safetensors an
    error of its own.

    Args:
        path: what is written in the block.
    """
    try:
        yield
    except Exception as error:
        number = _full_disk_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(Path(path))) from error


def _full_disk_error(error: BaseException) -> int | None:
    """Return the system's number of the full disk that caused an error, or None."""
    cause: BaseException | None = error
    while cause is not None:
        for number in FULL_DISK_ERRORS:
            if (isinstance(cause, OSError) and cause.errno == number) or f"(os error {number})" in str(cause):
                return number
        cause = cause.__cause__ or cause.__context__
    return None
