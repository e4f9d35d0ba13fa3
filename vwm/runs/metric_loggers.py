"""Weights & Biases and TensorBoard, for agents and ``vwm fit`` alike. A metric is called ``TABLE/NAME`` in both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from vwm.runs.run_folder import RunFolder


class MetricLogger(Protocol):
    """Takes the rows of metric tables, in addition to the CSV files."""

    def log(self, table: str, step: int, values: Mapping[str, float]) -> None:
        """Log a row of a table."""
        ...

    def close(self) -> None:
        """Write out what is still in memory."""
        ...


class WandbMetricLogger:
    """Logs to Weights & Biases.

    Args:
        run: folder of the run; its name becomes the name of the W&B run, whose files are in ``wandb/``.
        project: project of Weights & Biases.
        online: send metrics while training (requires an account); otherwise they stay here until ``wandb sync``.
        settings: settings of the run, shown with it.
    """

    def __init__(self, run: RunFolder, project: str, online: bool, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project=project,
            name=run.path.resolve().name,
            dir=run.path,
            config=dict(settings),
            mode="online" if online else "offline",
        )

    def log(self, table: str, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricLogger.log``."""
        self._run.log({f"{table}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """See ``MetricLogger.close``."""
        self._run.finish()


class TensorBoardMetricLogger:
    """Writes TensorBoard's event files into ``tensorboard/`` of a run.

    Args:
        run: folder of the run.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, run: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"TensorBoard is not installed ({error}): pip install -e '.[tensorboard]' in the clone"
            ) from error
        self._writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def log(self, table: str, step: int, values: Mapping[str, float]) -> None:
        """See ``MetricLogger.log``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{table}/{name}", value, step)

    def close(self) -> None:
        """See ``MetricLogger.close``."""
        self._writer.close()


def make_metric_loggers(
    run: RunFolder, wandb: str | None, wandb_online: bool, tensorboard: bool, settings: Mapping[str, Any]
) -> list[MetricLogger]:
    """Make the loggers that the options of a command select; CSV tables are always written.

    Args:
        run: folder of the run.
        wandb: project of Weights & Biases, or None.
        wandb_online: see ``WandbMetricLogger``.
        tensorboard: whether to write TensorBoard's files.
        settings: settings of the run, for Weights & Biases.
    """
    loggers: list[MetricLogger] = []
    if wandb is not None:
        loggers.append(WandbMetricLogger(run, wandb, wandb_online, settings))
    if tensorboard:
        loggers.append(TensorBoardMetricLogger(run))
    return loggers
