"""What ``vwm agent train`` runs: any way of coming to a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod


class TrainingRun(ABC):
    """One run, described by its constructor. It goes on where it stood when it is begun again."""

    @abstractmethod
    def run(self) -> None:
        """Train to the end."""
