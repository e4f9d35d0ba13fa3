"""The folder of a training run: where its files are, and which process may write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text
from vwm.core.folder_lock import lock_folder

CONFIG_FILE = "config.yaml"


class RunFolder:
    """Paths, lock and config of a run; ``vwm fit`` and ``vwm agent train`` write the same layout.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """Every setting of the run, as YAML."""
        return self.path / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """Folder of what the run resumes from."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The file that the run resumes from."""
        return self.checkpoints / "last.ckpt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has something to resume from in its folder: a file, or a complete checkpoint folder."""
        return self.last_checkpoint.is_file() or any(self.checkpoints.glob("step-*/index.json"))

    @property
    def best_checkpoint(self) -> Path:
        """The weights with the best evaluation (agents)."""
        return self.checkpoints / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """Folder of the CSV tables."""
        return self.path / "metrics"

    @property
    def videos(self) -> Path:
        """Folder of the videos that the training writes."""
        return self.path / "videos"

    def find_last_checkpoint(self) -> Path:
        """Return the path of the last checkpoint. Raises FileNotFoundError where nothing was saved yet."""
        if not self.last_checkpoint.is_file():
            raise FileNotFoundError(f"{self.last_checkpoint} does not exist: the run has not saved a checkpoint yet")
        return self.last_checkpoint

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and keep other processes from writing to it; see ``lock_folder``.

        In a distributed run rank 0 holds the lock for all ranks.

        Raises:
            FolderInUseError: another process holds it.
        """
        with lock_folder(self.path, "training"):
            yield

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``, atomically."""
        atomic_write_text(self.config, text)
