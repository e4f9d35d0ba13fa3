"""Write Lightning's metrics to the run's tables and loggers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from vwm.runs.metric_loggers import MetricLogger
from vwm.runs.metric_tables import MetricTable, open_metric_tables
from vwm.runs.run_folder import RunFolder


class RunMetricsLogger(Logger):
    """Writes a metric called ``TABLE/NAME`` into the column NAME of ``metrics/TABLE.csv``; ``epoch`` into every table.

    The same metrics of the same step are written once: a checkpoint has them written before it is saved, and Lightning
    gives them again. A run that resumes removes rows from its first new step on, since it writes them again.

    Args:
        run: folder of the run.
        loggers: get every row, too.
    """

    def __init__(self, run: RunFolder, loggers: Sequence[MetricLogger] = ()) -> None:
        super().__init__()
        self.run = run
        self.loggers = loggers
        self._tables: dict[str, MetricTable] = {}
        self._first_step: int | None = None
        self._last_metrics = ""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.run.path.name

    @property
    def version(self) -> str:
        """Runs have no versions."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` has every setting."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row to every table that has metrics in this step."""
        assert step is not None
        text = repr((step, metrics))  # unlike the numbers, the text of NaN equals itself
        if text == self._last_metrics:
            return
        self._last_metrics = text
        if self._first_step is None:
            self._first_step = step
            names = [path.stem for path in self.run.metrics.glob("*.csv")]
            self._tables = open_metric_tables(self.run, names, step - 1, self.loggers)
        rows: dict[str, dict[str, float]] = defaultdict(dict)
        for metric, value in metrics.items():
            table, _, name = metric.rpartition("/")
            rows[table.replace("/", "_")][name] = value
        common = rows.pop("", {})
        for table, row in rows.items():
            if table not in self._tables:
                self._tables |= open_metric_tables(self.run, [table], step - 1, self.loggers)
            self._tables[table].add(step, **common, **row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.close()
