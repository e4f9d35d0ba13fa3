"""Write files and folders atomically: readers see the old or the new content, never a part of it.

Both functions write under a hidden temporary name in the same folder, flush to the disk and rename. If the process is
killed before that, the previous file or folder stays in place next to the temporary one, whose name contains the
machine and the process. The next write to the same path removes it once that process has ended. Files of any other
name are never touched.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vwm.core.folder_lock import check_folder_place, lock_replaced_folder, make_folder
from vwm.core.full_disk import name_full_disk

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:64]
_LEFTOVER = re.compile(rf"\.(.+)\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]{{8}}\.(tmp|old)")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file to write; its folder is made where it is missing.

    Yields:
        A binary file open for reading and writing.

    Raises:
        OSError: the disk is full; the message names the file.
    """
    target = Path(path)
    with name_full_disk(target):
        make_folder(target.parent)
        remove_leftovers(target)
        temporary = _temporary_path(target, "tmp")
        try:
            with temporary.open("w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(target.parent)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text into a file, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Make an empty folder that takes the place of ``folder`` when the block ends without an error.

    What was there stays in place until the new folder is complete. Linux exchanges the two in one step. Elsewhere the
    old one is renamed first, and put back by the next write where the process is killed between the two renames.

    Args:
        folder: the folder to write; a link to a folder stays a link.

    Yields:
        The temporary folder to write into.

    Raises:
        FolderInUseError: another process is replacing the folder.
        OSError: the disk is full; the message names the folder.
    """
    target = Path(folder)
    target = target.resolve() if target.is_symlink() else target
    with name_full_disk(target), lock_replaced_folder(target, "process"):
        yield from _replace_folder(target)


def _replace_folder(target: Path) -> Iterator[Path]:
    remove_leftovers(target)
    temporary, retired = _temporary_path(target, "tmp"), _temporary_path(target, "old")
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if target.exists():
            if _exchange(temporary, target):
                temporary.rename(retired)
            else:
                target.rename(retired)
                temporary.rename(target)
        else:
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes of this machine left next to ``target``; restore a folder they were replacing."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]{{8}}\.(tmp|old)")
    for path in target.parent.glob(f".{_escape_glob(target.name)}.*"):
        matched = pattern.fullmatch(path.name)
        if matched is None or process_runs(int(matched[1])):
            continue
        if matched[2] == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_replaceable_folder(folder: Path, mark: str, what: str) -> None:
    """Raise an error unless a folder can be written and is new, empty, or of the kind that is to be replaced.

    Args:
        folder: where something is to be written.
        mark: name of a file that every folder of the kind has.
        what: name of the kind, for the error message.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no {what} (it has no {mark}): choose another folder (--out)")
    check_folder_place(folder.absolute().parent)


def remove_folder_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left among the files of a folder, whatever they were writing."""
    for path in folder.glob(".*"):
        matched = _LEFTOVER.fullmatch(path.name)
        if matched is not None:
            remove_leftovers(folder / matched[1])


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    current_folder, exchange = -100, 2
    return bool(library.renameat2(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0)


def _temporary_path(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.{suffix}")


def _escape_glob(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def process_runs(number: int) -> bool:
    """Whether a process of this machine has not ended; True where that cannot be told."""
    if os.name == "nt":  # os.kill ends a process there
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, where the system lets a folder be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some file systems do not flush folders
    finally:
        os.close(descriptor)
