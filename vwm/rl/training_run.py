"""What ``vwm agent train`` runs: any way of coming to a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vwm.runs.training_runtime import TrainingRuntime


class TrainingRun(ABC):
    """One run, described by its constructor. It continues from its last checkpoint when it is started again.

    Attributes:
        runtime: precision, compilation and loggers; the command sets it before ``run``.
    """

    runtime: TrainingRuntime = TrainingRuntime()

    @abstractmethod
    def run(self) -> None:
        """Train to the end."""
