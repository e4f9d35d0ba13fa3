"""The training loop of all agents: resume, step, log, evaluate, save, stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from vwm.core.checks import check_positive
from vwm.core.command_output import progress_bar, show_detail
from vwm.core.devices import allow_tf32, resolve_device
from vwm.core.folder_lock import make_folder
from vwm.core.network_simulator import NetworkSimulator
from vwm.envs.batched_envs import EnvSpec
from vwm.rl.algorithm import Algorithm, StepMetrics, TrainingSetup
from vwm.rl.evaluation_log import EvaluationConfig, EvaluationLog, is_best_evaluation
from vwm.runs.checkpoints import (
    load_best_weights,
    load_checkpoint,
    mismatch_as_value_error,
    read_checkpoint,
    save_best_weights,
    save_checkpoint,
)
from vwm.runs.metric_tables import MetricTable, average_update_logs, open_metric_tables
from vwm.runs.rng_states import restore_rng_states
from vwm.runs.run_folder import RunFolder
from vwm.runs.stop_signal import StopRequest
from vwm.runs.training_runtime import TrainingRuntime

POLICY_TABLES = ("episodes", "evaluations", "updates")
CHECKPOINT_OWNER = "agent or environment"
"""What a checkpoint belongs to, for error messages."""


class AgentTraining:
    """Drives an algorithm; ``vwm agent train`` runs it.

    Steps count in the algorithm's unit: decisions over all environments, or generations. The run's folder holds
    ``metrics/`` (``episodes``, ``evaluations`` and ``updates``), ``curves.png``, ``videos/`` and ``checkpoints/``
    (``last.ckpt`` to resume from, ``best.ckpt`` with the weights of the best evaluation). A run that stopped resumes
    from its last checkpoint, and ends with the same result as without the interruption.

    Args:
        run: folder of everything that the run writes.
        algorithm: how the policy learns.
        steps: length of the training.
        seed: of everything random.
        device: of the networks; ``auto`` takes a GPU where there is one.
        threads: of torch on the CPU; 0 leaves torch's choice.
        evaluation: when and where the policy is evaluated.
        checkpoint_every: steps from one checkpoint to the next.
        log_every: updates that are averaged to one row of ``updates``.
        accelerate: ``auto`` captures acting and updates as CUDA graphs on a GPU; ``none`` computes them plainly.

    Attributes:
        runtime: precision, compilation and loggers; the command sets it before ``run``.

    Raises:
        ValueError: a count is out of range.
    """

    def __init__(
        self,
        run: Path,
        algorithm: Algorithm,
        steps: int = 100_000,
        seed: int = 0,
        device: str = "auto",
        threads: int = 0,
        evaluation: EvaluationConfig = EvaluationConfig(),
        checkpoint_every: int = 10_000,
        log_every: int = 100,
        accelerate: Literal["auto", "none"] = "auto",
    ) -> None:
        check_positive(steps=steps, checkpoint_every=checkpoint_every, log_every=log_every)
        self.folder = RunFolder(run)
        self.algorithm = algorithm
        self.steps = steps
        self.seed = seed
        self.device = device
        self.threads = threads
        self.evaluation = evaluation
        self.checkpoint_every = checkpoint_every
        self.log_every = log_every
        self.accelerate = accelerate
        self.runtime = TrainingRuntime()
        self._tables: dict[str, MetricTable] = {}
        self._updates = 0
        self._log_sums: dict[str, tuple[float, int]] = {}
        self._random_return = float("nan")

    @property
    def setup(self) -> TrainingSetup:
        """What the algorithm gets."""
        return TrainingSetup(
            folder=self.folder,
            steps=self.steps,
            seed=self.seed,
            device=resolve_device(self.device),
            evaluation_episodes=self.evaluation.episodes,
            runtime=self.runtime,
            accelerate=self.accelerate,
        )

    @property
    def eval_env(self) -> EnvSpec:
        """The environment that the policy is evaluated in."""
        return self.algorithm.evaluation_env(self.evaluation.env)

    def run(self) -> None:
        """Train to the end, from the last checkpoint on; one that has ended already changes nothing.

        Raises:
            ValueError: the checkpoint is of another algorithm, agent or environment.
            SystemExit: a signal stopped the run, after it was saved.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        allow_tf32(self.setup.device)
        algorithm = self.algorithm
        self.set_up()
        if self.runtime.compile:
            algorithm.compile_networks()
        with (
            progress_bar(desc="train", total=self.steps, initial=algorithm.progress, unit=algorithm.unit) as bar,
            StopRequest() as stop,
        ):
            if algorithm.evaluates_first and not algorithm.progress:
                self._evaluate(bar)
            while algorithm.progress < self.steps and not stop:
                before = algorithm.progress
                self._write_rows(algorithm.step())
                done = algorithm.progress >= self.steps
                if self._crosses(before, self.evaluation.every) or (done and not algorithm.evaluates_itself):
                    self._evaluate(bar)
                if self._crosses(before, self.checkpoint_every) or done or stop:
                    self.save()
                bar.update(algorithm.progress - before)
        if not stop and algorithm.evaluates_itself:
            algorithm.finish(self.evaluation.env)
        algorithm.close()
        stop.end(f"{algorithm.progress} {algorithm.unit}s are saved in {self.folder.path}")

    def set_up(self) -> None:
        """Prepare the algorithm for its next step, at its start or from the last checkpoint."""
        algorithm = self.algorithm
        make_folder(self.folder.path)
        torch.manual_seed(self.seed)
        algorithm.set_up(self.setup)
        checkpoint = self.folder.last_checkpoint
        resumed = checkpoint.is_file()
        if resumed:
            self._load(checkpoint)
            print(f"resuming from {checkpoint}, {algorithm.progress} {algorithm.unit}s")
        algorithm.prune_files()
        names = [path.stem for path in self.folder.metrics.glob("*.csv")]
        names += [] if algorithm.evaluates_itself else POLICY_TABLES
        # Without a checkpoint all rows of an earlier attempt are dropped, also those of step 0.
        step = algorithm.progress if resumed else -1
        self._tables = open_metric_tables(self.folder, names, step, self.runtime.loggers)
        if not resumed and not algorithm.evaluates_itself:
            self._random_return = self._evaluation_log().random_return()

    def save(self) -> None:
        """Write the checkpoint: first the algorithm's own files, last the small file that names them."""
        counters = {"updates": self._updates, "log_sums": dict(self._log_sums), "random_return": self._random_return}
        save_checkpoint(self.folder.last_checkpoint, {"algorithm": self.algorithm}, {}, counters)
        self.algorithm.prune_files()

    def load_policy(self, best: bool = False) -> Any:
        """Load the policy as it was saved last, or with the weights of its best evaluation; also of a running training.

        Raises:
            FileNotFoundError: nothing was saved yet.
            ValueError: it is of another agent or environment, or the algorithm has no policy to load.
        """
        return self._build_policy(None if best else self._read_algorithm_state())

    def export_simulator(self, best: bool, title: str, fps: float, contexts: int) -> NetworkSimulator:
        """Make a simulator of the agent's world model; see ``Algorithm.export_simulator``."""
        state = self._read_algorithm_state()
        policy = self._build_policy(None if best else state)
        return self.algorithm.export_simulator(self.setup, policy, state, title, fps, contexts)

    def _read_algorithm_state(self) -> dict[str, Any]:
        state: dict[str, Any] = read_checkpoint(self.folder.find_last_checkpoint())["algorithm"]
        return state

    def _build_policy(self, state: dict[str, Any] | None) -> Any:
        """Build the policy with the weights of a saved state of the algorithm, or of the best evaluation for None."""
        policy = self.algorithm.build_policy(self.setup)
        if state is None:
            load_best_weights(self.folder, policy)
            return policy
        with mismatch_as_value_error(self.folder.last_checkpoint, CHECKPOINT_OWNER):
            policy.load_state_dict(state["policy"])
        return policy

    def _load(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, {"algorithm": self.algorithm}, {}, CHECKPOINT_OWNER)
        self._updates = state["counters"]["updates"]
        before = (
            self._updates % self.log_every
        )  # of checkpoints that kept sums only, in which every update had each number
        self._log_sums = {
            name: (sums, before) if isinstance(sums, float) else tuple(sums)
            for name, sums in state["counters"]["log_sums"].items()
        }
        self._random_return = state["counters"]["random_return"]
        restore_rng_states(state["generators"])

    def _crosses(self, before: int, every: int) -> bool:
        """Return whether the last step reached or passed a multiple of ``every``."""
        return bool(every) and self.algorithm.progress // every > before // every

    def _write_rows(self, metrics: StepMetrics) -> None:
        for table, rows in metrics.items():
            for row in rows:
                if table == "updates":
                    self._log_update(row)
                else:
                    values = {"step": self.algorithm.progress, **row}
                    self._table(table).add(int(values.pop("step")), **values)

    def _log_update(self, logs: Mapping[str, float]) -> None:
        self._updates += 1
        means = average_update_logs(self._log_sums, logs, self._updates, self.log_every)
        if means:
            self._table("updates").add(self.algorithm.progress, **means)
            if episode := self.algorithm.imagined_episode(means):
                self._table("episodes").add(self.algorithm.progress, **episode)

    def _table(self, name: str) -> MetricTable:
        if name not in self._tables:
            self._tables |= open_metric_tables(self.folder, [name], self.algorithm.progress - 1, self.runtime.loggers)
        return self._tables[name]

    def _evaluate(self, bar: tqdm[Any]) -> None:
        algorithm = self.algorithm
        if algorithm.evaluates_itself:
            self._write_rows(algorithm.evaluate(self.evaluation.env))
            return
        result = self._evaluation_log().evaluate(
            algorithm.policy, algorithm.progress, self._tables, self._random_return
        )
        if is_best_evaluation(self._tables["evaluations"].rows()):
            save_best_weights(self.folder, algorithm.policy)
        algorithm.observe_evaluation(result)
        low, high = result.interval()
        show_detail(bar, f"return {result.returns.mean():.1f} [{low:.1f}, {high:.1f}]")

    def _evaluation_log(self) -> EvaluationLog:
        return EvaluationLog(self.folder, self.algorithm.env, self.eval_env, self.evaluation, self.seed)
