"""`vwm plan`: how often a planner reaches goals that are pictures, beside policies that need no world."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_positive
from vwm.core.simulator import Simulator
from vwm.core.version import VERSION
from vwm.data.video_encoding import write_video
from vwm.eval.plan_figures import draw_frame_strip, plot_episode_paths, tile_episode_video
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, GoalReduction, LatentMetric
from vwm.planning.goal_tasks import GoalTask, find_goal_task
from vwm.planning.mpc_policy import MPCPolicy, TaskPolicy, TaskRollout, random_task_policy, run_task_policy
from vwm.planning.mppi import MPPI
from vwm.planning.sampling_planner import SamplingPlanner
from vwm.worlds.bundle import load_simulator

PLAN_RESULT_FILE = "plan.json"
PLANNERS: dict[str, type[SamplingPlanner]] = {"cem": CEM, "mppi": MPPI}
NORMAL_QUANTILE_95 = 1.959963984540054
"""Standard deviations on either side that hold 95 % of a normal distribution."""


class SuccessRate(NamedTuple):
    """A share of successes with its 95 % interval (Wilson 1927), and how many there were of how many."""

    rate: float
    low: float
    high: float
    solved: int
    n: int


def evaluate_planner(
    bundle: Path,
    env: str,
    out: Path = Path("plan"),
    episodes: int = 100,
    planner: Literal["cem", "mppi"] = "cem",
    horizon: int = 24,
    replan: int = 2,
    budget: int = 60,
    samples: int = 64,
    iterations: int = 3,
    planner_options: dict[str, Any] | None = None,
    metric: LatentMetric = "l1",
    over: GoalReduction | None = None,
    decay: float = 1.0,
    seed: int = 0,
    frame_skip: int | None = None,
    env_options: dict[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Let a world plan its way to goals, and measure how often it gets there.

    Args:
        bundle: folder of the world, as `vwm export` makes it.
        env: vwm/TwoRooms-v0, Pendulum-v1 or MountainCarContinuous-v0.
        out: folder for the result; an earlier result there is replaced.
        episodes: pairs of start and goal.
        planner: cem or mppi.
        horizon: steps that the planner looks ahead.
        replan: steps from one decision to the next.
        budget: steps an episode.
        samples: action sequences an iteration.
        iterations: of each decision.
        planner_options: the planner's other settings, e.g. '{elites: 10, colour: 0, momentum: 0.15, max_norm: 0.05}'.
        metric: distance to the goal in representation space, l1 or l2.
        over: which steps of a sequence count: the end, the sum of all, or the nearest (min); null takes what suits
            the game's goal.
        decay: for sum, how much each step counts of the one after it.
        seed: of starts, goals and all that is drawn.
        frame_skip: steps of the game an action is held for; null takes what fits the world's frames a second.
        env_options: options of the game, e.g. '{random_wall: true}'.
        device: auto takes a GPU where there is one.

    Returns:
        The result, as it stands in ``plan.json``.

    Raises:
        ValueError: a setting makes no sense, the world does not fit the game, or ``out`` is something else's folder.
    """
    check_positive(episodes=episodes, budget=budget, frame_skip=frame_skip)
    check_replaceable_folder(out, PLAN_RESULT_FILE, "such result")
    kind = find_goal_task(env)
    made = {"horizon": horizon, "samples": samples, "iterations": iterations, **(planner_options or {})}
    searcher = make_planner(planner, made)
    simulator = load_simulator(bundle, device)
    if simulator.spec.context.is_vector:
        raise ValueError(f"{bundle}: goals are images, but this world shows {simulator.spec.context}")
    skip = frame_skip or infer_frame_skip(kind.ENV, simulator)
    begin = functools.partial(kind, episodes, seed, simulator.spec.context.image_size[0], skip, env_options)
    over = over or kind.over
    objective = functools.partial(GoalDistance, metric=metric, over=over, decay=decay)
    first = begin()
    check_simulator_fits_task(simulator, first)
    pilot = MPCPolicy(simulator, searcher, first.goals, objective, replan, seed)
    played = {planner: run_task_policy(first, pilot, budget), **run_reference_policies(begin, seed, budget)}
    result = {
        "env": kind.ENV,
        "success": kind.success,
        "unit": kind.unit,
        "results": summarize_task_rollouts(played, first.groups()),
        "seconds_a_decision": float(np.mean(pilot.seconds)),
        "milliseconds_a_decision_and_episode": 1000 * sum(pilot.seconds) / sum(pilot.decided),
        "world_steps_a_decision_and_episode": searcher.simulator_steps_per_plan,
        "made": {
            "bundle": str(bundle),
            "planner": {"name": planner, **vars(searcher)},
            "objective": {"metric": metric, "over": over, "decay": decay},
            "episodes": episodes,
            "replan": replan,
            "budget": budget,
            "seed": seed,
            "frame_skip": skip,
            "env_options": env_options or {},
            "versions": {"vwm": VERSION, "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "device": str(simulator.device),
        },
    }
    _write_planner_results(out, result, first, played[planner])
    first.close()
    print(format_planner_results(result))
    print(f"{out / PLAN_RESULT_FILE}: the whole result; paths.png, strip.png and episodes.mp4 beside it")
    return result


def make_planner(name: str, options: Mapping[str, Any]) -> SamplingPlanner:
    """A planner by its name.

    Raises:
        ValueError: it does not take an option, or not that value.
    """
    try:
        return PLANNERS[name](**options)
    except TypeError as error:
        raise ValueError(f"planner {name} with options {dict(options)}: {error}") from error


def infer_frame_skip(env: str, simulator: Simulator) -> int:
    """Steps of the game that one frame of the world stands for."""
    game = gymnasium.make(env, render_mode="rgb_array", disable_env_checker=True)
    rate = float(game.metadata.get("render_fps") or 15)
    game.close()
    return max(1, round(rate / simulator.spec.fps))


def check_simulator_fits_task(simulator: Simulator, task: GoalTask) -> None:
    """Raise ValueError unless a world has the pictures and the actions of a task."""
    height, width = simulator.spec.context.image_size
    if height != width:
        raise ValueError(f"{task.ENV} is played with square frames, the world has {height}x{width}")
    if (simulator.spec.actions.kind, simulator.spec.actions.size) != ("continuous", task.action_size):
        raise ValueError(
            f"{task.ENV} takes {task.action_size} continuous actions, the world {simulator.spec.actions.size} "
            f"{simulator.spec.actions.kind} ones: was it trained on this game?"
        )


def run_reference_policies(begin: Callable[[], GoalTask], seed: int, budget: int) -> dict[str, TaskRollout]:
    """The same episodes by policies that need no world: random actions, and those that the task knows."""
    task = begin()
    played = {"random": run_task_policy(task, random_task_policy(task, seed), budget)}
    task.close()
    for name in task.references():
        task = begin()
        played[name] = run_task_policy(task, _ignore_frames(task.references()[name]), budget)
        task.close()
    return played


def _ignore_frames(act: Callable[[], NDArray[np.float32]]) -> TaskPolicy:
    return lambda frames, playing: act()


def summarize_task_rollouts(played: Mapping[str, TaskRollout], groups: list[str]) -> dict[str, Any]:
    """By kind of episode and by policy: success, steps to it, and the distance at the end."""
    kinds = np.array(groups)
    masks = {"all": np.ones(len(kinds), bool), **{kind: kinds == kind for kind in sorted({*groups} - {"all"})}}
    return {
        kind: {name: _summarize_task_rollout(run, mask) for name, run in played.items()}
        for kind, mask in masks.items()
        if mask.any()
    }


def _summarize_task_rollout(run: TaskRollout, mask: NDArray[np.bool_]) -> dict[str, Any]:
    solved = run.solved[mask]
    steps = run.steps[mask][solved]
    return {
        "success": success_rate_interval(int(solved.sum()), len(solved))._asdict(),
        "median_steps_of_solved": float(np.median(steps)) if len(steps) else None,
        "first_distance": float(run.distances[mask, 0].mean()),
        "final_distance": float(run.distances[mask, -1].mean()),
    }


def success_rate_interval(solved: int, n: int) -> SuccessRate:
    """Share of successes with Wilson's 95 % interval, which holds near 0 and 1 too."""
    rate, scale = solved / n, 1 + NORMAL_QUANTILE_95**2 / n
    middle = (rate + NORMAL_QUANTILE_95**2 / (2 * n)) / scale
    half = NORMAL_QUANTILE_95 * math.sqrt(rate * (1 - rate) / n + NORMAL_QUANTILE_95**2 / (4 * n**2)) / scale
    return SuccessRate(rate, max(0.0, middle - half), min(1.0, middle + half), solved, n)


def format_planner_results(result: Mapping[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"success: {result['success']}"]
    for kind, policies in result["results"].items():
        for name, found in policies.items():
            rate = found["success"]
            lines.append(
                f"{kind:12} {name:14} {100 * rate['rate']:5.1f} % ({100 * rate['low']:.1f} to "
                f"{100 * rate['high']:.1f}; {rate['solved']}/{rate['n']})   distance {found['first_distance']:.2f} -> "
                f"{found['final_distance']:.2f} {result['unit']}"
            )
    lines.append(
        f"{result['seconds_a_decision']:.3f} s a decision, "
        f"{result['milliseconds_a_decision_and_episode']:.1f} ms and {result['world_steps_a_decision_and_episode']} "
        f"steps of the world an episode of it"
    )
    return "\n".join(lines)


def _write_planner_results(out: Path, result: Mapping[str, Any], task: GoalTask, run: TaskRollout) -> None:
    """Write the folder (aside, then renamed over what was there)."""
    with atomic_folder(out) as aside:
        (aside / PLAN_RESULT_FILE).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        plot_episode_paths(task, run).savefig(aside / "paths.png")
        draw_frame_strip(run.frames[: run.steps[0] + 1, 0], task.goals[0]).save(aside / "strip.png")
        write_video(aside / "episodes.mp4", tile_episode_video(run.frames, task.goals), task.fps)
