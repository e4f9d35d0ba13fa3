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
from vwm.core.command_output import format_command, print_output
from vwm.core.trusted_packages import trust_package
from vwm.data.workers import run_jobs
from vwm.envs.batched_envs import EnvSpec
from vwm.eval.plots import plot_learning_curves, plot_returns
from vwm.eval.return_comparison import MeanWithInterval, ReturnComparison, compare_returns
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.evaluation_log import learns_in_simulator
from vwm.runs.metric_tables import read_csv_rows
from vwm.runs.run_folder import RunFolder

RANDOM_POLICY = "random"
COMPARISON_FILE = "comparison.json"


class RunGroup(NamedTuple):
    """Runs that differ only by their seed, under one name."""

    name: str
    runs: list[Path]


def compare_runs(
    runs: list[str],
    reference: str | None = None,
    out: Path = Path("runs/comparison"),
    episodes: int = 100,
    seed: int = 2_000_000,
    num_envs: int = 16,
    workers: int = 0,
    allow_packages: list[str] | None = None,
) -> None:
    """Evaluate the agents of several runs, and random actions, in the real environment on the same episodes.

    Writes ``comparison.md``, ``comparison.png``, ``comparison.json`` and ``curves.png``.

    Args:
        runs: [NAME=]RUN[,RUN...]: folders of runs; those under one name differ only by their seed.
        reference: name of the runs whose return is 1 on the normalized scale, such as those that learned from real
            steps; random actions are 0.
        out: output folder.
        episodes: number of episodes of each run, and of random actions.
        seed: of the episodes; training uses other seeds.
        num_envs: maximum number of copies of the environment.
        workers: processes that evaluate one run each; 0 evaluates one run after another.
        allow_packages: packages other than vwm whose code the runs' configs may name, and which are then imported.

    Raises:
        ValueError: no runs have the name ``reference``, or runs are evaluated in different environments.
    """
    for package in allow_packages or ():
        trust_package(package)
    groups = parse_run_groups(runs)
    if reference is not None and reference not in {group.name for group in groups}:
        names = ", ".join(group.name for group in groups)
        raise ValueError(f"--reference {reference}: no runs have this name; there are {names}")
    check_replaceable_folder(out, COMPARISON_FILE, "comparison")
    env_spec = common_env_spec(groups)
    evaluate = partial(
        evaluate_run,
        env_spec=env_spec,
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        allow_packages=allow_packages,
    )
    folders: list[Path | None] = [None, *(folder for group in groups for folder in group.runs)]
    evaluations: dict[Path | None, EvaluationResult] = {}
    for folder, evaluation in run_jobs(evaluate, folders, workers):
        evaluations[folder] = evaluation
        print(f"{folder or RANDOM_POLICY}: {evaluation.returns.mean():.2f}", flush=True)
    by_name = {RANDOM_POLICY: [evaluations[None]]} | {
        group.name: [evaluations[folder] for folder in group.runs] for group in groups
    }
    returns = {name: [evaluation.returns for evaluation in group] for name, group in by_name.items()}
    result = compare_returns(returns, RANDOM_POLICY, reference)
    steps = {RANDOM_POLICY: 0} | {group.name: count_env_steps(group.runs[0]) for group in groups}
    table = render_comparison_table(result, steps, {name: len(group) for name, group in by_name.items()})
    with atomic_folder(out) as temporary:
        settings = {"env": repr(env_spec), "episodes": episodes, "seed": seed, "reference": reference}
        report = settings | comparison_to_json(result, by_name, steps, groups)
        (temporary / COMPARISON_FILE).write_text(json.dumps(report, indent=2) + "\n")
        title = f"{episodes} episodes per run in {env_spec}"
        (temporary / "comparison.md").write_text(f"{title}\n\n{table}")
        plot_returns(result.means, result.normalized, title).savefig(temporary / "comparison.png")
        curves = {group.name: [read_learning_curve(folder) for folder in group.runs] for group in groups}
        plot_learning_curves(curves, result.means[RANDOM_POLICY].value, f"{env_spec}").savefig(temporary / "curves.png")
    print(f"\n{table}\n")
    print_output(out, "the table, plots and every return", format_command("agent", "play", groups[0].runs[0]))


def evaluate_run(
    folder: Path | None,
    env_spec: EnvSpec,
    episodes: int,
    seed: int,
    num_envs: int,
    allow_packages: list[str] | None = None,
) -> EvaluationResult:
    """Evaluate the policy of a run in its evaluation environment, or random actions (None) in ``env_spec``."""
    policy, eval_env = load_agent(folder, allow_packages=allow_packages) if folder else (None, env_spec)
    return evaluate_policy(policy, eval_env, episodes, seed, num_envs)


def parse_run_groups(texts: list[str]) -> list[RunGroup]:
    """Parse ``[NAME=]RUN[,RUN...]``; a group without a name is called like its first folder.

    Raises:
        ValueError: a name is empty, occurs twice or is that of the random actions.
    """
    groups: list[RunGroup] = []
    for text in texts:
        name, equals, folders = text.rpartition("=")
        runs = [Path(folder) for folder in folders.split(",") if folder]
        if not runs or (equals and not name):
            raise ValueError(f"{text!r}: give NAME=RUN or NAME=RUN,RUN")
        groups.append(RunGroup(name or runs[0].resolve().name, runs))
    names = [group.name for group in groups]
    duplicates = sorted({name for name in names if names.count(name) > 1 or name == RANDOM_POLICY})
    if duplicates:
        raise ValueError(f"{', '.join(duplicates)}: several groups have this name; give each its own: NAME=RUN")
    return groups


def common_env_spec(groups: list[RunGroup]) -> EnvSpec:
    """Return the environment that all runs are evaluated in, without encoders. Raises ValueError where they differ."""
    env_specs: dict[Path, EnvSpec] = {}
    for folder in (folder for group in groups for folder in group.runs):
        training = load_agent_training(folder)
        if training.algorithm.evaluates_itself:
            raise ValueError(f"{folder}: its training evaluates its agents itself; see its evaluation.json")
        env_specs[folder] = training.eval_env.unwrapped
    first, env_spec = next(iter(env_specs.items()))
    for folder, other in env_specs.items():
        if other != env_spec:
            raise ValueError(
                f"{folder} is evaluated in {other}, but {first} in {env_spec}: returns of different environments "
                "cannot be compared"
            )
    return env_spec


def count_env_steps(folder: Path) -> int:
    """Return a run's decisions in real environments; 0 where it learned in a simulator or from a recording."""
    training = load_agent_training(folder)
    return 0 if learns_in_simulator(training.algorithm.env, training.eval_env) else training.steps


def read_learning_curve(folder: Path) -> dict[float, float]:
    """Return the mean returns of a run's own evaluations by step."""
    return {row["step"]: row["mean"] for row in read_csv_rows(RunFolder(folder).metrics / "evaluations.csv")}


def render_comparison_table(result: ReturnComparison, steps: dict[str, int], runs: dict[str, int]) -> str:
    """Return a Markdown table, best first."""
    lines = [
        "| | runs | steps in the environment | mean return [95%] | (return - random) / (reference - random) [95%] |",
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
    result: ReturnComparison,
    evaluations: dict[str, list[EvaluationResult]],
    steps: dict[str, int],
    groups: list[RunGroup],
) -> dict[str, Any]:
    """Return all numbers, with the returns of every episode in the order of the seeds."""
    folders = {group.name: [folder.name for folder in group.runs] for group in groups}
    by_group = {
        name: {
            "runs": folders.get(name, []),
            "env_steps": steps[name],
            "returns": [evaluation.returns.tolist() for evaluation in group],
            "lengths": [evaluation.lengths.tolist() for evaluation in group],
        }
        for name, group in evaluations.items()
    }
    return {**asdict(result), "groups": by_group, "torch": torch.__version__}


def _format_score(score: MeanWithInterval) -> str:
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
