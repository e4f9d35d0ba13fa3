"""Evaluations in the course of a training: what agents imagine to earn stands beside what they do earn."""

import math
from pathlib import Path
from types import SimpleNamespace

import torch

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.agent import PolicyStep
from vwm.rl.evaluation_log import evaluate_and_log, is_best_evaluation
from vwm.runs.metric_tables import MetricTable

PLAYER = SimpleNamespace(
    device=torch.device("cpu"),
    init_carry=lambda batch: (),
    act=lambda carry, moment, explore: PolicyStep(torch.zeros(len(moment.reward), dtype=torch.int64), carry, {}),
)


def settings(folder: Path, eval_env: GymnasiumEnvSpec) -> SimpleNamespace:
    game = GymnasiumEnvSpec("CartPole-v1")
    return SimpleNamespace(folder=folder, game=game, eval_env=eval_env, evaluate_episodes=2, seed=0, video=False)


def tables(folder: Path) -> dict[str, MetricTable]:
    return {name: MetricTable(folder / f"{name}.csv") for name in ("episodes", "evaluations", "updates")}


def test_what_was_imagined_since_the_last_evaluation_stands_beside_what_was_earned(tmp_path: Path) -> None:
    training, kept = settings(tmp_path, GymnasiumEnvSpec("CartPole-v1", time_limit=5)), tables(tmp_path)
    kept["episodes"].add(3, **{"return": 10.0, "length": 10.0})
    kept["episodes"].add(8, **{"return": 20.0, "length": 20.0})
    evaluate_and_log(training, PLAYER, "nobody", 10, kept, random=0.0)
    kept["episodes"].add(18, **{"return": 7.0, "length": 7.0})
    evaluate_and_log(training, PLAYER, "nobody", 20, kept, random=0.0)
    evaluate_and_log(training, PLAYER, "nobody", 30, kept, random=0.0)
    first, second, third = kept["evaluations"].rows()
    assert (first["imagined"], first["mean"], first["gap"]) == (15.0, 5.0, 10.0)
    assert (second["imagined"], second["gap"]) == (7.0, 2.0)
    assert math.isnan(third["imagined"]) and math.isnan(third["gap"])
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_who_is_judged_where_he_learns_imagines_nothing(tmp_path: Path) -> None:
    kept = tables(tmp_path)
    evaluate_and_log(settings(tmp_path, GymnasiumEnvSpec("CartPole-v1")), PLAYER, "nobody", 10, kept, random=0.0)
    assert kept["evaluations"].columns == ["step", "mean", "low", "high", "length"]


def test_the_best_is_the_highest_and_of_equals_the_last() -> None:
    means = [3.0, 2.0, 3.0, 4.0, 3.0]
    rows = [{"mean": mean} for mean in means]
    assert [is_best_evaluation(rows[: count + 1]) for count in range(len(rows))] == [True, False, True, True, False]
