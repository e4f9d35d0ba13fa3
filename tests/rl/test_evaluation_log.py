"""Evaluations during training: imagined returns are compared with real ones."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vwm.envs.batched_envs import EnvSpec, GymnasiumEnvSpec
from vwm.rl.agent import PolicyStep
from vwm.rl.evaluation_log import EvaluationConfig, EvaluationLog, is_best_evaluation
from vwm.runs.metric_tables import MetricTable
from vwm.runs.run_folder import RunFolder
from vwm.worlds.simulated_env import SimulatedEnvSpec

POLICY = SimpleNamespace(
    device=torch.device("cpu"),
    init_carry=lambda batch: (),
    act=lambda carry, time_step, explore: PolicyStep(torch.zeros(len(time_step.reward), dtype=torch.int64), carry, {}),
)


def make_evaluation_log(folder: Path, env: EnvSpec, eval_env: EnvSpec) -> EvaluationLog:
    return EvaluationLog(RunFolder(folder), env, eval_env, EvaluationConfig(episodes=2, video=False), seed=0)


def make_tables(folder: Path) -> dict[str, MetricTable]:
    return {name: MetricTable(folder / f"{name}.csv") for name in ("episodes", "evaluations", "updates")}


def test_a_row_compares_imagined_returns_since_the_last_evaluation_with_real_ones(tmp_path: Path) -> None:
    world, real = SimulatedEnvSpec(Path("world")), GymnasiumEnvSpec("CartPole-v1", time_limit=5)
    log, tables = make_evaluation_log(tmp_path, world, real), make_tables(tmp_path)
    tables["episodes"].add(3, **{"return": 10.0, "length": 10.0})
    tables["episodes"].add(8, **{"return": 20.0, "length": 20.0})
    log.evaluate(POLICY, 10, tables, random_return=0.0)
    tables["episodes"].add(18, **{"return": 7.0, "length": 7.0})
    log.evaluate(POLICY, 20, tables, random_return=0.0)
    log.evaluate(POLICY, 30, tables, random_return=0.0)
    first, second, third = tables["evaluations"].rows()
    assert (first["imagined"], first["mean"], first["gap"]) == (15.0, 5.0, 10.0)
    assert (second["imagined"], second["gap"]) == (7.0, 2.0)
    assert math.isnan(third["imagined"]) and math.isnan(third["gap"])
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("time_limit", [None, 5])
def test_returns_in_a_real_environment_are_not_imagined(tmp_path: Path, time_limit: int | None) -> None:
    """Neither in the environment of the evaluation nor in another one, such as other levels of the same game."""
    env, tables = GymnasiumEnvSpec("CartPole-v1", time_limit=time_limit), make_tables(tmp_path)
    log = make_evaluation_log(tmp_path, env, GymnasiumEnvSpec("CartPole-v1"))
    log.evaluate(POLICY, 10, tables, random_return=0.0)
    assert tables["evaluations"].columns == ["step", "mean", "low", "high", "length"]


def test_the_best_evaluation_has_the_highest_mean_and_ties_go_to_the_latest() -> None:
    means = [3.0, 2.0, 3.0, 4.0, 3.0]
    rows = [{"mean": mean} for mean in means]
    assert [is_best_evaluation(rows[: count + 1]) for count in range(len(rows))] == [True, False, True, True, False]
