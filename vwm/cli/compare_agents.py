"""``vwm agent compare``: compare the returns of several runs and of random actions in the real environment."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vwm.cli.agent_commands import load_agent, load_agent_training
from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.data.workers import run_jobs
from vwm.envs.batched_envs import EnvSpec
from vwm.eval.plots import plot_learning_curves, plot_returns
from vwm.eval.return_comparison import MeanWithInterval, ReturnComparison, compare_returns
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.runs.metric_tables import read_csv_rows
from vwm.runs.run_folder import RunFolder

RANDOM_POLICY = "random"
COMPARISON_FILE = "comparison.json"


class RunGroup(NamedTuple):
    """Runs that differ only by their seed, under one name."""

    name: str
    runs: list[Path]


def compare_runs(
    ways: list[str],
    real: str | None = None,
    out: Path = Path("runs/comparison"),
    episodes: int = 100,
    seed: int = 2_000_000,
    num_envs: int = 16,
    workers: int = 0,
) -> None:
    """Play the agents of several runs in the real environment, and random actions, on the same episodes.

    Writes ``comparison.md``, ``comparison.png``, ``comparison.json`` and ``curves.png``.

    Args:
        ways: [NAME=]RUN[,RUN...]: folders of runs; those behind one name differ by their seed.
        real: name of the runs that learned from real steps: the 1 of the normalized returns.
        out: folder to make.
        episodes: of each run, and of random actions.
        seed: of the episodes; trainings use others.
        num_envs: copies of the environment at most.
        workers: processes, a run each; 0 evaluates one run after another.

    Raises:
        ValueError: no runs of the name ``real``, or runs that are evaluated in different environments.
    """
    groups = parse_run_groups(ways)
    if real is not None and real not in {group.name for group in groups}:
        raise ValueError(f"--real {real}: there is no such way; there are {', '.join(group.name for group in groups)}")
    check_replaceable_folder(out, COMPARISON_FILE, "comparison")
    game = common_env_spec(groups)
    player = partial(evaluate_run, game=game, episodes=episodes, seed=seed, num_envs=num_envs)
    played: dict[Path | None, EvaluationResult] = {}
    for folder, evaluation in run_jobs(player, [None, *(folder for group in groups for folder in group.runs)], workers):
        played[folder] = evaluation
        print(f"{folder or RANDOM_POLICY}: {evaluation.returns.mean():.2f}", flush=True)
    found = {RANDOM_POLICY: [played[None]]} | {
        group.name: [played[folder] for folder in group.runs] for group in groups
    }
    result = compare_returns({name: [one.returns for one in runs] for name, runs in found.items()}, RANDOM_POLICY, real)
    steps = {RANDOM_POLICY: 0} | {group.name: count_env_steps(group.runs[0]) for group in groups}
    table = render_comparison_table(result, steps, {name: len(runs) for name, runs in found.items()})
    with atomic_folder(out) as aside:
        told = comparison_to_json(result, found, steps, groups)
        settled = {"game": repr(game), "episodes": episodes, "seed": seed, "real": real}
        (aside / COMPARISON_FILE).write_text(json.dumps(settled | told, indent=2) + "\n")
        title = f"{episodes} episodes a run in {game}"
        (aside / "comparison.md").write_text(f"{title}\n\n{table}")
        plot_returns(result.means, result.normalized, title).savefig(aside / "comparison.png")
        curves = {group.name: [read_learning_curve(folder) for folder in group.runs] for group in groups}
        plot_learning_curves(curves, result.means[RANDOM_POLICY].value, f"{game}").savefig(aside / "curves.png")
    print(f"\n{table}\ntable, plots and every return: {out}")


def evaluate_run(folder: Path | None, game: EnvSpec, episodes: int, seed: int, num_envs: int) -> EvaluationResult:
    """Evaluate the policy of a run in its evaluation environment, or random actions (None) in ``game``."""
    player, seen = load_agent(folder) if folder else (None, game)
    return evaluate_policy(player, seen, episodes, seed, num_envs)


def parse_run_groups(said: list[str]) -> list[RunGroup]:
    """Parse ``[NAME=]RUN[,RUN...]``; a group without a name has that of its first folder.

    Raises:
        ValueError: a name is empty, occurs twice or is that of the random actions.
    """
    ways: list[RunGroup] = []
    for text in said:
        name, equals, folders = text.rpartition("=")
        runs = [Path(folder) for folder in folders.split(",") if folder]
        if not runs or (equals and not name):
            raise ValueError(f"{text!r}: give NAME=RUN or NAME=RUN,RUN")
        ways.append(RunGroup(name or runs[0].resolve().name, runs))
    names = [way.name for way in ways]
    twice = sorted({name for name in names if names.count(name) > 1 or name == RANDOM_POLICY})
    if twice:
        raise ValueError(f"{', '.join(twice)}: names more than one way; name each apart: NAME=RUN")
    return ways


def common_env_spec(ways: list[RunGroup]) -> EnvSpec:
    """Return the environment that all runs are evaluated in, without encoders. Raises ValueError where they differ."""
    games: dict[Path, EnvSpec] = {}
    for folder in (folder for way in ways for folder in way.runs):
        training = load_agent_training(folder)
        if training.algorithm.evaluates_itself:
            raise ValueError(f"{folder}: its training evaluates its agents itself; see the evaluation that it wrote")
        games[folder] = training.eval_env.bare
    first, game = next(iter(games.items()))
    for folder, other in games.items():
        if other != game:
            raise ValueError(
                f"{folder} is evaluated in {other}, but {first} in {game}: returns of different environments cannot be "
                "compared"
            )
    return game


def count_env_steps(folder: Path) -> int:
    """Return a run's decisions in its evaluation environment; 0 where it learned in a simulator or from a recording."""
    training = load_agent_training(folder)
    return training.steps if training.algorithm.env == training.eval_env else 0


def read_learning_curve(folder: Path) -> dict[float, float]:
    """Return the mean returns of a run's own evaluations by step."""
    return {row["step"]: row["mean"] for row in read_csv_rows(RunFolder(folder).metrics / "evaluations.csv")}


def render_comparison_table(result: ReturnComparison, steps: dict[str, int], runs: dict[str, int]) -> str:
    """Return a Markdown table, best first."""
    lines = [
        "| | runs | steps in the game | mean return [95%] | (return - random) / (real - random) [95%] |",
        "|---|---|---|---|---|",
    ]
    for name, mean in sorted(result.means.items(), key=lambda item: -item[1].value):
        ratio = result.normalized.get(name)
        lines.append(
            f"| {name} | {runs[name]} | {steps[name]:,} | {_format_score(mean)} | "
            f"{_format_score(ratio) if ratio else ''} |"
        )
    return "\n".join(lines) + "\n"


def comparison_to_json(
    result: ReturnComparison, found: dict[str, list[EvaluationResult]], steps: dict[str, int], ways: list[RunGroup]
) -> dict[str, Any]:
    """Return all numbers, with the returns of every episode in the order of the seeds."""
    folders = {way.name: [folder.name for folder in way.runs] for way in ways}
    returns = {
        name: {
            "runs": folders.get(name, []),
            "steps": steps[name],
            "returns": [one.returns.tolist() for one in played],
            "lengths": [one.lengths.tolist() for one in played],
        }
        for name, played in found.items()
    }
    return {**asdict(result), "ways": returns, "torch": torch.__version__}


def _format_score(score: MeanWithInterval) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
