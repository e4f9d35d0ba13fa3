"""`vwm plan`: how often a planner reaches image goals, compared with policies that need no world."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.checks import check_positive
from vwm.core.command_output import format_command, print_output
from vwm.core.simulator import Simulator
from vwm.core.version import VERSION
from vwm.data.video_encoding import write_video
from vwm.envs.env_ids import make_env
from vwm.eval.plan_figures import draw_frame_strip, plot_episode_paths, tile_episode_video
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, GoalReduction, LatentMetric
from vwm.planning.goal_task import GoalTask
from vwm.planning.goal_tasks import find_goal_task
from vwm.planning.mpc_policy import MPCPolicy, TaskPolicy, TaskRollout, random_task_policy, run_task_policy
from vwm.planning.mppi import MPPI
from vwm.planning.random_shooting import RandomShooting
from vwm.planning.sampling_planner import SamplingPlanner
from vwm.worlds.bundle import load_simulator

PLAN_RESULT_FILE = "plan.json"
PLANNERS: dict[str, type[SamplingPlanner]] = {"cem": CEM, "mppi": MPPI, "random_shooting": RandomShooting}
NORMAL_QUANTILE_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution, for two-sided 95 % intervals."""


class SuccessRate(NamedTuple):
    """A success rate with its 95 % interval (Wilson 1927), the number of successes and of episodes."""

    rate: float
    low: float
    high: float
    solved: int
    n: int


@dataclass(frozen=True)
class GoalTaskConfig:
    """Episodes of a task: pairs of a start and a goal.

    Attributes:
        episodes: pairs of start and goal.
        max_steps: largest number of steps per episode.
        frame_skip: environment steps that an action is held for; null fits the world's frame rate.
        env_options: options of the environment, e.g. '{random_wall: true}'.
    """

    episodes: int = 100
    max_steps: int = 60
    frame_skip: int | None = None
    env_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class GoalPlannerConfig:
    """The planner, and how often it plans.

    Attributes:
        planner: cem, mppi or random_shooting.
        horizon: steps of the world that the planner looks ahead; each has spec.frames_per_step frames.
        replan_every: steps of the world from one decision to the next.
        samples: action sequences per iteration.
        iterations: iterations per decision; null is the planner's default, 3, or 1 for random_shooting.
        planner_options: other settings of the planner, e.g. '{elites: 10, noise_exponent: 0, momentum: 0.15}'.
    """

    planner: Literal["cem", "mppi", "random_shooting"] = "cem"
    horizon: int = 24
    replan_every: int = 2
    samples: int = 64
    iterations: int | None = None
    planner_options: dict[str, Any] | None = None

    def make_planner(self) -> SamplingPlanner:
        """Make the planner. Raises ValueError for an unknown option or a value that is out of range."""
        sizes = {"horizon": self.horizon, "samples": self.samples}
        if self.iterations is not None:
            sizes["iterations"] = self.iterations
        return make_planner(self.planner, {**sizes, **(self.planner_options or {})})


@dataclass(frozen=True)
class GoalObjectiveConfig:
    """The distance that the planner minimizes.

    Attributes:
        metric: distance to the goal in latent space, l1 or l2.
        reduction: distances of a sequence that count: of the last step (end), all (sum) or the closest (min); null
            takes the task's default.
        decay: with reduction sum, the weight of a step divided by that of the next step.
    """

    metric: LatentMetric = "l1"
    reduction: GoalReduction | None = None
    decay: float = 1.0


def evaluate_planner(
    bundle: Path,
    env: str,
    out: Path = Path("plan"),
    task: GoalTaskConfig = GoalTaskConfig(),
    planning: GoalPlannerConfig = GoalPlannerConfig(),
    objective: GoalObjectiveConfig = GoalObjectiveConfig(),
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Plan toward image goals in a world, and measure how often the true environment reaches them.

    Args:
        bundle: folder of the world, as `vwm export` writes it.
        env: vwm/TwoRooms-v0, vwm/Lamp-v0, vwm/PushT-v0, vwm/Reacher-v0, Pendulum-v1 or MountainCarContinuous-v0.
        out: folder of the results; earlier results there are replaced.
        task: settings of the episodes.
        planning: settings of the planner.
        objective: the distance that the planner minimizes.
        seed: seed of the starts, the goals and all random numbers.
        device: where to compute; see ``resolve_device``.

    Returns:
        The results, as written to ``plan.json``.

    Raises:
        ValueError: a setting is out of range, the world does not fit the environment, or ``out`` has other content.
    """
    check_positive(episodes=task.episodes, max_steps=task.max_steps, frame_skip=task.frame_skip)
    check_replaceable_folder(out, PLAN_RESULT_FILE, "such result")
    task_class = find_goal_task(env)
    planner = planning.make_planner()
    simulator = load_simulator(bundle, device)
    size = _frame_size(simulator, bundle)
    skip = task.frame_skip or infer_frame_skip(task_class.ENV, simulator)
    task = replace(task, frame_skip=skip, env_options=task.env_options or {})
    objective = replace(objective, reduction=objective.reduction or task_class.reduction)
    open_task = functools.partial(task_class, task.episodes, seed, size, skip, task.env_options)
    episodes = open_task()
    check_simulator_fits_task(simulator, episodes)
    distance = functools.partial(GoalDistance, **asdict(objective))
    policy = MPCPolicy(simulator, planner, episodes.goals, distance, planning.replan_every, seed)
    rollouts: dict[str, TaskRollout] = {planning.planner: run_task_policy(episodes, policy, task.max_steps)}
    rollouts |= run_reference_policies(open_task, seed, task.max_steps)
    result = {
        **_summarize_planning(episodes, rollouts, policy, planner),
        "settings": {
            "bundle": str(bundle),
            "planner": {"name": planning.planner, **vars(planner)},
            "replan_every": planning.replan_every,
            "objective": asdict(objective),
            **asdict(task),
            "seed": seed,
            **_describe_machine(simulator),
        },
    }
    _write_planner_results(out, result, episodes, rollouts[planning.planner])
    episodes.close()
    return result


def _frame_size(simulator: Simulator, bundle: Path) -> int:
    """Return the height of the world's frames. Raises ValueError for a world of vectors."""
    if simulator.spec.context.is_vector:
        raise ValueError(f"{bundle}: goals are images, but this world shows {simulator.spec.context}")
    return simulator.spec.context.image_size[0]


def _summarize_planning(
    task: GoalTask, rollouts: Mapping[str, TaskRollout], policy: MPCPolicy, planner: SamplingPlanner
) -> dict[str, Any]:
    return {
        "env": task.ENV,
        "success": task.success,
        "unit": task.unit,
        "results": summarize_task_rollouts(rollouts, task.groups()),
        "seconds_per_decision": float(np.mean(policy.seconds)),
        "milliseconds_per_decision_and_episode": 1000 * sum(policy.seconds) / sum(policy.num_planned),
        "simulator_steps_per_decision_and_episode": planner.simulator_steps_per_plan,
    }


def _describe_machine(simulator: Simulator) -> dict[str, Any]:
    return {
        "versions": {"vwm": VERSION, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "device": str(simulator.device),
    }


def make_planner(name: str, options: Mapping[str, Any]) -> SamplingPlanner:
    """Make a planner by its name.

    Raises:
        ValueError: it does not accept an option, or a value is out of range.
    """
    try:
        return PLANNERS[name](**options)
    except TypeError as error:
        raise ValueError(f"planner {name} with options {dict(options)}: {error}") from error


def infer_frame_skip(env: str, simulator: Simulator) -> int:
    """Compute the number of environment steps per frame of the world from their frame rates."""
    opened = make_env(env, {"render_mode": "rgb_array"})
    rate = float(opened.metadata.get("render_fps") or 15)
    opened.close()
    return max(1, round(rate / simulator.spec.fps))


def check_simulator_fits_task(simulator: Simulator, task: GoalTask) -> None:
    """Raise ValueError unless a world has the frames and the actions of a task."""
    height, width = simulator.spec.context.image_size
    if height != width:
        raise ValueError(f"{task.ENV} has square frames, the world has {height}x{width}")
    if not simulator.spec.actions.fits(task.actions.space):
        raise ValueError(
            f"{task.ENV} takes {task.actions.space}, the world {simulator.spec.actions}: was it trained on this "
            "environment?"
        )


def run_reference_policies(make_task: Callable[[], GoalTask], seed: int, max_steps: int) -> dict[str, TaskRollout]:
    """Run the same episodes with policies that need no world: random actions and the task's reference policies."""
    task = make_task()
    rollouts = {"random": run_task_policy(task, random_task_policy(task, seed), max_steps)}
    task.close()
    for name in task.reference_policies():
        task = make_task()
        rollouts[name] = run_task_policy(task, _ignore_frames(task.reference_policies()[name]), max_steps)
        task.close()
    return rollouts


def _ignore_frames(act: Callable[[], NDArray[np.float32]]) -> TaskPolicy:
    return lambda frames, active: act()


def summarize_task_rollouts(rollouts: Mapping[str, TaskRollout], groups: list[str]) -> dict[str, Any]:
    """Summarize success, steps and distances by group of episodes and by policy."""
    kinds = np.array(groups)
    masks = {"all": np.ones(len(kinds), bool), **{group: kinds == group for group in sorted({*groups} - {"all"})}}
    return {
        group: {name: _summarize_task_rollout(run, mask) for name, run in rollouts.items()}
        for group, mask in masks.items()
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
    """Compute a success rate with Wilson's 95 % interval, which is valid near 0 and 1, too."""
    rate, scale = solved / n, 1 + NORMAL_QUANTILE_95**2 / n
    middle = (rate + NORMAL_QUANTILE_95**2 / (2 * n)) / scale
    half = NORMAL_QUANTILE_95 * math.sqrt(rate * (1 - rate) / n + NORMAL_QUANTILE_95**2 / (4 * n**2)) / scale
    return SuccessRate(rate, max(0.0, middle - half), min(1.0, middle + half), solved, n)


def format_planner_results(result: Mapping[str, Any]) -> str:
    """Format the results as text."""
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
        f"per decision {result['seconds_per_decision']:.3f} s, per decision and episode "
        f"{result['milliseconds_per_decision_and_episode']:.1f} ms and "
        f"{result['simulator_steps_per_decision_and_episode']} simulator steps"
    )
    return "\n".join(lines)


def _write_planner_results(out: Path, result: Mapping[str, Any], task: GoalTask, run: TaskRollout) -> None:
    """Write all files of the result atomically, and print a summary."""
    with atomic_folder(out) as folder:
        (folder / PLAN_RESULT_FILE).write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        plot_episode_paths(task, run).savefig(folder / "paths.png")
        draw_frame_strip(run.frames[: run.steps[0] + 1, 0], task.goals[0]).save(folder / "strip.png")
        write_video(folder / "episodes.mp4", tile_episode_video(run.frames, task.goals), task.fps)
    print(format_planner_results(result))
    contents = f"{PLAN_RESULT_FILE}, paths.png, strip.png and episodes.mp4"
    print_output(out, contents, format_command("bench", "play", result["settings"]["bundle"]))
