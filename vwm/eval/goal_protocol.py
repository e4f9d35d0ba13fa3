"""stable-worldmodel's protocols for planners: goals from recorded episodes, a fixed budget, a fixed search.

The protocol (github.com/galilai-group/stable-worldmodel, commit addbab4, MIT): 50 pairs of a start and a goal 25 steps
later in the same recorded episode; 50 steps of budget; the cross-entropy method with 300 sequences, 30 iterations and
the 30 best, over 5 blocks of 5 steps, all of which are taken before the next plan; the squared distance of the last
predicted latent to the goal's; success at any time. It is run here on this package's environments and data.

Results are kept in parts of a few episodes, so that an evaluation that was interrupted continues.

Legend: n episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vwm.core.atomic_files import atomic_write_text
from vwm.core.checks import check_not_negative, check_positive
from vwm.core.json_files import read_json_object
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.eval.goal_evaluation import check_simulator_fits_task, success_rate_interval
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.goal_task import RecordedGoals, StateGoalTask
from vwm.planning.goal_tasks import find_goal_task
from vwm.planning.mpc_policy import (
    MPCPolicy,
    TaskPolicy,
    TaskRollout,
    random_task_policy,
    run_task_policy,
    still_task_policy,
)
from vwm.planning.recorded_goals import draw_recorded_goals
from vwm.planning.true_dynamics import TrueDynamicsPolicy
from vwm.worlds.bundle import load_simulator

SETTINGS_FILE, RESULT_FILE = "settings.json", "result.json"
IMAGE_SIZE = 64
"""Side of the images where there is no world, which the other rows do not see."""
WORLD, TRUE_DYNAMICS, RANDOM, STILL = "world", "true_dynamics", "random", "still"


@dataclass(frozen=True)
class ProtocolTask:
    """An environment of the protocol.

    Attributes:
        env: its id.
        frame_skip: steps of the environment in a block, for which an action is held; data and world have them, too.
        env_options: of its constructor; data have them, too.
    """

    env: str
    frame_skip: int = 5
    env_options: dict[str, Any] = field(default_factory=dict)


PROTOCOL_TASKS = {
    # 1.2 of 64 pixels, where the original moves 5 of 224 pixels in a step
    "two_rooms": ProtocolTask("vwm/TwoRooms-v0", env_options={"step_size": 1.2}),
    "push_t": ProtocolTask("vwm/PushT-v0"),
    "reacher": ProtocolTask("vwm/Reacher-v0", frame_skip=10),  # the original repeats every action once
}


@dataclass(frozen=True)
class ProtocolSettings:
    """The numbers of the protocol; the defaults are the published ones.

    Attributes:
        episodes: pairs of a start and a goal.
        goal_blocks: blocks from a start to its goal.
        budget_blocks: blocks after which an episode is over.
        horizon: blocks of a plan, all of which are taken.
        samples, iterations, elites: of the cross-entropy method.
        true_samples, true_iterations: the same for the search in the true environment; 0 sequences leave it out.
        seed: of pairs and searches.
        part_size: episodes that are played together.
    """

    episodes: int = 50
    goal_blocks: int = 5
    budget_blocks: int = 10
    horizon: int = 5
    samples: int = 300
    iterations: int = 30
    elites: int = 30
    true_samples: int = 300
    true_iterations: int = 30
    seed: int = 42
    part_size: int = 10

    def __post_init__(self) -> None:
        names = ("episodes", "goal_blocks", "budget_blocks", "horizon", "samples", "iterations", "elites", "part_size")
        check_positive(**{name: getattr(self, name) for name in names})
        check_not_negative(true_samples=self.true_samples, seed=self.seed)

    def planner(self, samples: int, iterations: int) -> CEM:
        """Make the search: white noise, no momentum, no floor of the deviation, the mean of the last best sequences."""
        return CEM(
            horizon=self.horizon,
            samples=samples,
            iterations=iterations,
            elites=min(self.elites, samples),
            momentum=0.0,
            init_std=1 / 3**0.5,  # that of uniform actions; the original takes the data's
            min_std=0.0,
            noise_exponent=0.0,
            keep_elites=0,
            selection="mean",
        )


def run_goal_protocol(
    bundle: Path | None,
    data: Path,
    out: Path,
    task: ProtocolTask,
    settings: ProtocolSettings = ProtocolSettings(),
    device: str = "auto",
) -> dict[str, Any]:
    """Plan in a world to recorded goals, and compare with the true dynamics, random actions and none.

    Args:
        bundle: folder of the world; None leaves its row out.
        data: recorded episodes of the task, with states.
        out: folder of the results; parts that are there are not played again.
        task: the environment.
        settings: the numbers of the protocol.
        device: where to compute; see ``resolve_device``.

    Returns:
        The results, as written to ``result.json``.

    Raises:
        ValueError: the world or the data do not fit the task, or ``out`` holds parts of other settings.
    """
    simulator = None if bundle is None else load_simulator(bundle, device)
    if simulator is not None and simulator.spec.context.is_vector:
        raise ValueError(f"{bundle}: goals are images, but this world shows {simulator.spec.context}")
    world = None if bundle is None else str(bundle)
    used = {"bundle": world, "data": str(data), "task": asdict(task), **asdict(settings)}
    check_or_write_settings(out, used)
    pairs = draw_recorded_goals(data, settings.episodes, settings.goal_blocks, settings.seed)
    rows = [*([WORLD] if simulator else []), *([TRUE_DYNAMICS] if settings.true_samples else []), RANDOM, STILL]
    episodes: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    for row in rows:
        for first in range(0, settings.episodes, settings.part_size):
            part = out / f"{row}-{first:05d}.json"
            if not part.is_file():
                found = _play_part(row, first, simulator, task, settings, pairs)
                atomic_write_text(part, json.dumps({"episodes": found}) + "\n")
            episodes[row] += read_json_object(part)["episodes"]
    result = {"settings": used, "success": find_goal_task(task.env).success, "results": summarize_episodes(episodes)}
    atomic_write_text(out / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    return result


def check_or_write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a new folder, or check that those found there are the same.

    Raises:
        ValueError: they differ.
    """
    path, expected = out / SETTINGS_FILE, json.loads(json.dumps(settings))
    if path.is_file():
        found = read_json_object(path)
        if differing := [name for name in expected if found.get(name) != expected[name]]:
            changes = ", ".join(f"{name} was {found.get(name)!r} and is now {expected[name]!r}" for name in differing)
            raise ValueError(f"{out}: holds results of other settings ({changes}). Choose another folder.")
        return
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(expected, indent=2) + "\n")


def _play_part(
    row: str,
    first: int,
    simulator: Simulator | None,
    task: ProtocolTask,
    settings: ProtocolSettings,
    pairs: RecordedGoals,
) -> list[dict[str, Any]]:
    """Play some of the episodes with one policy; the result does not depend on the other parts."""
    chosen = slice(first, first + settings.part_size)
    part = RecordedGoals(pairs.starts[chosen], pairs.goals[chosen], pairs.names)
    size = simulator.spec.context.image_size[0] if simulator else IMAGE_SIZE
    played = find_goal_task(task.env)(
        episodes=len(part.starts),
        seed=settings.seed,
        size=size,
        frame_skip=task.frame_skip,
        options=task.env_options,
        recorded=part,
    )
    assert isinstance(played, StateGoalTask), "other tasks take no recorded goals"
    try:
        if simulator is not None:
            check_simulator_fits_task(simulator, played)
        seeds = world_seeds(settings.seed, settings.episodes)[chosen]
        policy = _make_policy(row, simulator, played, settings, seeds, first)
        return list(_describe_episodes(run_task_policy(played, policy, settings.budget_blocks, keep_frames=0)))
    finally:
        played.close()


def _make_policy(
    row: str,
    simulator: Simulator | None,
    task: StateGoalTask,
    settings: ProtocolSettings,
    seeds: torch.Tensor,
    first: int,
) -> TaskPolicy:
    if row == RANDOM:
        return random_task_policy(task, settings.seed + first)
    if row == STILL:
        return still_task_policy(task)
    if row == TRUE_DYNAMICS:
        planner = settings.planner(settings.true_samples, settings.true_iterations)
        return TrueDynamicsPolicy(task, planner, "end", settings.horizon, seeds)
    assert simulator is not None, "this row is the world's"
    return MPCPolicy(
        simulator=simulator,
        planner=settings.planner(settings.samples, settings.iterations),
        goals=task.goals,
        objective=lambda goals: GoalDistance(goals, "l2", "end"),
        replan_every=settings.horizon,
        seed=seeds,
    )


def _describe_episodes(run: TaskRollout) -> Iterator[dict[str, Any]]:
    for solved, steps, distances in zip(run.solved, run.steps, run.distances, strict=True):
        yield {
            "solved": bool(solved),
            "blocks": int(steps),
            "first_distance": float(distances[0]),
            "closest_distance": float(distances.min()),
        }


def summarize_episodes(episodes: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Summarize episodes by row: the success rate with Wilson's 95% interval, blocks and distances."""
    return {
        row: {
            "success": success_rate_interval(sum(e["solved"] for e in found), len(found))._asdict(),
            "median_blocks_of_solved": float(np.median([e["blocks"] for e in found if e["solved"]]))
            if any(e["solved"] for e in found)
            else None,
            "first_distance": float(np.mean([e["first_distance"] for e in found])),
            "closest_distance": float(np.mean([e["closest_distance"] for e in found])),
        }
        for row, found in episodes.items()
    }


def format_protocol_results(result: Mapping[str, Any]) -> str:
    """Format the results as text."""
    lines = [f"success: {result['success']}"]
    for row, found in result["results"].items():
        rate = found["success"]
        lines.append(
            f"{row:14} {100 * rate['rate']:5.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}; "
            f"{rate['solved']}/{rate['n']})   distance {found['first_distance']:.3f} -> "
            f"{found['closest_distance']:.3f}"
        )
    return "\n".join(lines)
