"""The folder of a training run: where its files are, and which process may write them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vwm.core.atomic_files import atomic_write_text

CONFIG_FILE = "config.yaml"
_locked_here: set[Path] = set()
"""Locks of this process; the lock of a file does not keep a process from locking it twice."""


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
        """Make the folder and keep other processes from writing to it until the block ends.

        The lock belongs to this process alone: data workers that it forks do not hold it, so it is released when the
        process ends, for any reason. In a distributed run rank 0 holds it for all ranks.

        Raises:
            ValueError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = (self.path / ".lock").resolve()
        if path in _locked_here:
            raise ValueError(self._locked_message("this process"))
        with path.open("a+") as file:
            try:
                import fcntl

                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows
                pass
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(self._locked_message(file.read().strip() or "another process")) from None
            _locked_here.add(path)
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                yield
            finally:
                _locked_here.discard(path)

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``, atomically."""
        atomic_write_text(self.config, text)

    def _locked_message(self, holder: str) -> str:
        return f"{self.path}: another training writes there ({holder}): wait for it, or choose another folder"
