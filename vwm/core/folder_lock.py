"""One writer a folder: training runs, recordings, ingested and encoded shards, and exports all take the same lock.

The lock is a file that its process holds open with a lock of the system, so that it ends with the process, however
that ends. It is removed when it is released.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vwm.core.full_disk import name_full_disk

_held_here: set[Path] = set()
"""Lock files of this process; a lock of the system does not keep a process from locking a file twice."""


class FolderInUseError(ValueError):
    """Another process writes to the folder."""


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, where they are missing. Raises FileExistsError where one of them is a file."""
    path = Path(folder)
    check_folder_place(path)
    path.mkdir(parents=True, exist_ok=True)


def check_folder_place(folder: Path) -> None:
    """Raise OSError where a folder could not be made or written to: before the work whose results it takes begins."""
    place = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    if not place.is_dir():
        start = "" if place == folder else f"{folder} cannot be made: "
        raise FileExistsError(f"{start}{place} is a file, not a folder; choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write into {place}; choose another folder")


@contextmanager
def lock_folder(folder: str | os.PathLike[str], writer: str) -> Iterator[None]:
    """Make a folder, and keep other processes from writing into it until the block ends.

    Processes that this one forks do not hold the lock.

    Args:
        folder: to write into.
        writer: what writes there, for the error message: "training", "recording".

    Raises:
        FolderInUseError: another process holds the lock.
    """
    path = Path(folder)
    is_new = not path.exists()
    make_folder(path)
    try:
        with _lock_file(path / ".lock", path, writer):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                path.rmdir()  # succeeds only if nothing was written


@contextmanager
def lock_replaced_folder(folder: str | os.PathLike[str], writer: str) -> Iterator[None]:
    """Keep other processes from replacing a folder; see ``lock_folder``. The lock file lies next to the folder."""
    path = Path(os.path.abspath(folder))
    make_folder(path.parent)
    with _lock_file(path.with_name(f".{path.name}.lock"), Path(folder), writer):
        yield


@contextmanager
def _lock_file(path: Path, folder: Path, writer: str) -> Iterator[None]:
    path = path.resolve()
    if path in _held_here:
        raise FolderInUseError(_message(folder, writer, "this process"))
    with _open_locked(path, folder, writer) as file:
        _held_here.add(path)
        try:
            with name_full_disk(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            yield
        finally:
            _held_here.discard(path)
            path.unlink(missing_ok=True)  # before the lock is released, so that only its holder removes the file


def _open_locked(path: Path, folder: Path, writer: str) -> IO[str]:
    """Open and lock the file; again where its holder removed it in between."""
    while True:
        file = path.open("a+")
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            return file
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise FolderInUseError(_message(folder, writer, holder)) from None
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()


def _message(folder: Path, writer: str, holder: str) -> str:
    return f"{folder}: another {writer} writes there ({holder}): wait for it, or choose another folder"
