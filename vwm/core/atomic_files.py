"""Folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_replaceable_folder(folder: Path, mark: str, what: str) -> None:
    """Raise ValueError unless a folder is new, empty, or of the kind that is to be replaced.

    Args:
        folder: where something is to be written.
        mark: the file that every folder of the kind has.
        what: the kind, for people.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        raise ValueError(f"{folder} exists and is no {what} (it has no {mark}): choose another folder (--out)")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``folder`` when the block ends without an error."""
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
