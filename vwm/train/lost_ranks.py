"""Finds the ranks of a training whose host is gone: they write no more, and no connection of theirs is closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class LostRanks:
    """Compares the files of all ranks at two times, so that no clocks of hosts are compared.

    A rank whose file is of an earlier training, or is not there, is no lost one: the hosts may not share the folder, as
    every rank writes its file before the first step. Files are read only while the training makes no progress, twice in
    ``lost_after`` seconds.

    Args:
        folder: of the files ``RANK.json``.
        ranks: how many there are.
        lost_after: seconds without progress after which ranks count as lost that have not written for half of them.
        training: what tells this training from earlier ones in the same folder, equal on all ranks.
    """

    def __init__(self, folder: Path, ranks: int, lost_after: float, training: str) -> None:
        self.folder = folder
        self.ranks = ranks
        self.window = lost_after / 2
        self.training = training
        self._seen: list[Any] = []
        self._seen_at = 0.0

    def find(self, idle: float) -> list[int]:
        """Return the ranks that are lost; to be called every few seconds.

        Args:
            idle: seconds without progress.
        """
        if idle < self.window:
            self._seen = []
            return []
        if self._seen and idle - self._seen_at < self.window:
            return []
        earlier, self._seen, self._seen_at = self._seen, self._read(), idle
        both = enumerate(zip(earlier, self._seen, strict=False))
        return [rank for rank, (then, now) in both if then == now is not None]

    def _read(self) -> list[Any]:
        return [self._read_time(self.folder / f"{rank}.json") for rank in range(self.ranks)]

    def _read_time(self, path: Path) -> Any:
        """Return when a rank has written its file, by its own clock; None where there is none of this training."""
        try:
            progress = json.loads(path.read_text())
            return progress["written"] if progress["training"] == self.training else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
