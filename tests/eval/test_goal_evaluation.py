"""`vwm plan`: success rates, result files, and validation before planning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import genie
from latent_worlds import rssm_world
from PIL import Image
from rooms_world import ExactRooms

from vwm.data.video import probe_video
from vwm.eval import goal_evaluation as goal_evaluation
from vwm.eval.goal_evaluation import (
    PLAN_RESULT_FILE,
    GoalObjectiveConfig,
    GoalPlannerConfig,
    GoalTaskConfig,
    evaluate_planner,
    infer_frame_skip,
    make_planner,
    success_rate_interval,
    summarize_task_rollouts,
)
from vwm.planning.mpc_policy import TaskRollout


@pytest.fixture
def exact_world(monkeypatch):
    """The true dynamics, loaded in place of every bundle."""
    world = ExactRooms()
    monkeypatch.setattr(goal_evaluation, "load_simulator", lambda bundle, device: world)
    return world


def test_success_rates_have_wilson_intervals():
    # Brown, Cai, DasGupta (2001) and any table: 10 of 10 gives 72 to 100 %, 50 of 100 gives 40.4 to 59.6 %.
    assert success_rate_interval(10, 10)[:3] == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    assert success_rate_interval(0, 10)[:3] == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    assert success_rate_interval(50, 100)[1:] == pytest.approx((0.4038, 0.5962, 50, 100), abs=1e-4)


def test_results_are_summarized_per_group_of_episodes():
    distances = np.array([[8.0, 6, 1], [9.0, 9, 9], [5.0, 2, 2]])
    rollout = TaskRollout(
        distances, distances[..., None], np.array([True, False, True]), np.array([2, 2, 1]), np.zeros(0)
    )
    summary = summarize_task_rollouts({"cem": rollout}, ["same room", "other room", "same room"])
    assert list(summary) == ["all", "other room", "same room"]
    assert summary["all"]["cem"]["success"]["solved"] == 2 and summary["all"]["cem"]["success"]["n"] == 3
    assert summary["same room"]["cem"]["success"]["rate"] == 1
    assert summary["same room"]["cem"]["median_steps_of_solved"] == 1.5
    assert summary["other room"]["cem"]["median_steps_of_solved"] is None
    assert summary["all"]["cem"]["final_distance"] == 4 and summary["all"]["cem"]["first_distance"] == pytest.approx(
        22 / 3
    )


def test_results_contain_settings_and_figures_and_are_reproducible(exact_world, tmp_path: Path, capsys):
    settings = {
        "task": GoalTaskConfig(episodes=6, max_steps=40),
        "planning": GoalPlannerConfig(planner="mppi", planner_options={"temperature": 0.2}),
        "objective": GoalObjectiveConfig(metric="l2"),
    }
    out = tmp_path / "result"
    result = evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", out, **settings)
    assert json.loads((out / PLAN_RESULT_FILE).read_text()) == result
    assert list(result["results"]["all"]) == ["mppi", "random", "straight line"]
    assert result["results"]["all"]["mppi"]["success"]["solved"] >= 5
    used_settings = result["settings"]
    assert used_settings["planner"]["temperature"] == 0.2
    assert used_settings["objective"] == {
        "metric": "l2",
        "reduction": "min",
        "decay": 1.0,
    }
    assert used_settings["frame_skip"] == 1 and used_settings["episodes"] == 6
    assert result["simulator_steps_per_decision_and_episode"] == 24 * (64 * 3 + 1 + 4)
    with Image.open(out / "paths.png") as paths, Image.open(out / "strip.png") as strip:
        assert paths.size[0] > 400 and strip.size[1] == 128
    video = probe_video((out / "episodes.mp4").read_bytes(), "episodes")
    assert (video["height"], video["width"]) == (256, 768)
    assert "straight line" in capsys.readouterr().out
    repeated = evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", out, **settings)  # replaces the earlier result
    assert repeated["results"] == result["results"] and not list(tmp_path.glob("*.tmp"))
    changes = {"task": GoalTaskConfig(episodes=2, max_steps=3), "objective": GoalObjectiveConfig("l2", reduction="end")}
    evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", out, **{**settings, **changes, "seed": 1})
    used_settings = json.loads((out / PLAN_RESULT_FILE).read_text())["settings"]
    assert used_settings["seed"] == 1 and used_settings["objective"]["reduction"] == "end"


def test_the_frame_skip_is_inferred_from_the_frame_rate_of_the_world(exact_world):
    assert infer_frame_skip("vwm/TwoRooms-v0", exact_world) == 1
    exact_world.spec = replace(exact_world.spec, fps=2.5)
    assert infer_frame_skip("vwm/TwoRooms-v0", exact_world) == 4 and infer_frame_skip("Pendulum-v1", exact_world) == 12


def test_errors_are_raised_before_planning_and_keep_foreign_folders(exact_world, tmp_path: Path, monkeypatch):
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"no plan\.json"):
        evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", foreign)
    assert (foreign / "thesis.txt").read_text() == "years"
    out = tmp_path / "result"
    for settings, message in (
        ({"env": "CartPole-v1"}, "CartPole-v1"),
        ({"task": GoalTaskConfig(episodes=0)}, "episodes must be 1 or more"),
        ({"planning": GoalPlannerConfig(planner_options={"elite": 3})}, "planner cem with options.*elite"),
        ({"planning": GoalPlannerConfig(planner_options={"elites": 300})}, "elites"),
        ({"planning": GoalPlannerConfig(replan_every=30)}, "replan_every"),
        ({"env": "Pendulum-v1"}, "takes 1 continuous action, the world 2"),
        ({"task": GoalTaskConfig(env_options={"rooms": 3})}, "rooms"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_planner(Path("exact"), **{"env": "vwm/TwoRooms-v0", "out": out, **settings})
    monkeypatch.setattr(goal_evaluation, "load_simulator", lambda bundle, device: rssm_world((5,), classes=0))
    with pytest.raises(ValueError, match=r"goals are images, but this world shows float32 \[5\]"):
        evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", out)
    monkeypatch.setattr(goal_evaluation, "load_simulator", lambda bundle, device: genie())
    with pytest.raises(ValueError, match="4 discrete"):
        evaluate_planner(Path("exact"), "vwm/TwoRooms-v0", out)
    assert not out.exists()


def test_planners_are_made_by_name():
    assert make_planner("cem", {"horizon": 3}).horizon == 3 and make_planner("mppi", {"elites": 7}).elites == 7
    iterations = [GoalPlannerConfig(planner=name).make_planner().iterations for name in ("cem", "random_shooting")]
    assert iterations == [3, 1] and GoalPlannerConfig(iterations=5).make_planner().iterations == 5
