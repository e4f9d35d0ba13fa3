"""``vwm agent rank``: evaluate policies in a world, and measure how well it ranks them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vwm.cli.agent_commands import load_agent
from vwm.cli.compare_agents import RANDOM_POLICY, common_env_spec, parse_run_groups
from vwm.core.atomic_files import atomic_folder, check_replaceable_folder
from vwm.core.command_output import format_command, print_output
from vwm.core.trusted_packages import trust_package
from vwm.envs.batched_envs import EnvSpec
from vwm.envs.time_step import EnvSpaces
from vwm.eval.plots import plot_policy_ranking
from vwm.eval.policy_ranking import MIN_POLICIES, PolicyRanking, rank_policies
from vwm.rl.agent import ActingPolicy
from vwm.rl.algorithms.encoded_env import EncodedEnvSpec
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.partly_random_policy import PartlyRandomPolicy
from vwm.worlds.simulated_env import SimulatedEnvSpec

RANKING_FILE = "ranking.json"


class RankedPolicy(NamedTuple):
    """A policy, and the environments that it is played in; None takes random actions."""

    policy: ActingPolicy | None
    real: EnvSpec
    world: EnvSpec


def rank_runs(
    world: str,
    runs: list[str],
    data: str | None = None,
    out: Path = Path("runs/ranking"),
    epsilons: list[float] | None = None,
    episodes: int = 20,
    world_episodes: int | None = None,
    time_limit: int = 64,
    seed: int = 2_000_000,
    num_envs: int = 16,
    device: str = "auto",
    allow_packages: list[str] | None = None,
) -> None:
    """Play policies in a world and in the real environment, and compare the order of their returns.

    The policies are the runs' agents, each also with a share of random actions, and random actions alone. Writes
    ``ranking.json``, ``ranking.md`` and ``ranking.png``: Spearman's and Pearson's correlation and the mean maximum rank
    violation, with 95% intervals by a bootstrap over policies and episodes. Episodes of the world may be shorter than
    real ones: only the order of the returns is compared.

    Args:
        world: a bundle that predicts rewards.
        runs: [NAME=]RUN: folders of runs that are evaluated in one real environment.
        data: shards whose clips episodes in the world start from; by default the starts of the bundle.
        out: output folder.
        epsilons: shares of random actions with which each agent is played, too; 0, 0.25, 0.5 and 0.75 by default.
        episodes: number of real episodes of each policy.
        world_episodes: number of episodes of each policy in the world; by default as many as real ones.
        time_limit: decisions after which an episode in the world is truncated.
        seed: of the episodes; training uses other seeds.
        num_envs: maximum number of copies that step together.
        device: of the world; auto uses a GPU where there is one.
        allow_packages: packages other than vwm whose code the runs' configs may name, and which are then imported.

    Raises:
        ValueError: fewer than three policies, runs of different environments, or a world of other observations.
    """
    for package in allow_packages or ():
        trust_package(package)
    check_replaceable_folder(out, RANKING_FILE, "ranking")
    shares = [0.0, 0.25, 0.5, 0.75] if epsilons is None else epsilons
    policies = _load_policies(runs, shares, SimulatedEnvSpec(Path(world), data, time_limit=time_limit, device=device))
    if len(policies) < MIN_POLICIES:
        raise ValueError(f"{len(policies)} policies: give {MIN_POLICIES} or more, by more runs or more --epsilons")
    real: dict[str, EvaluationResult] = {}
    imagined: dict[str, EvaluationResult] = {}
    for name, (policy, real_env, world_env) in policies.items():
        real[name] = evaluate_policy(policy, real_env, episodes, seed, num_envs)
        imagined[name] = evaluate_policy(policy, world_env, world_episodes or episodes, seed, num_envs)
        print(f"{name}: {real[name].returns.mean():.2f} real, {imagined[name].returns.mean():.2f} in the world")
    ranking = rank_policies([x.returns for x in real.values()], [x.returns for x in imagined.values()])
    table = render_ranking_table(ranking, real, imagined)
    title = f"{len(policies)} policies in {policies[RANDOM_POLICY].real}, and in {world} for {time_limit} decisions"
    with atomic_folder(out) as aside:
        settings = {"world": str(world), "episodes": episodes, "time_limit": time_limit, "seed": seed}
        by_policy = {n: {"real": real[n].returns.tolist(), "world": imagined[n].returns.tolist()} for n in real}
        report = settings | {"ranking": asdict(ranking), "returns": by_policy}
        (aside / RANKING_FILE).write_text(json.dumps(report, indent=2) + "\n")
        (aside / "ranking.md").write_text(f"{title}\n\n{table}")
        plot_policy_ranking(_means(real), _means(imagined), title).savefig(aside / "ranking.png")
    print(f"\n{table}")
    print_output(out, "the table, a plot and every return", format_command("agent", "train"))


def render_ranking_table(
    ranking: PolicyRanking, real: Mapping[str, EvaluationResult], imagined: Mapping[str, EvaluationResult]
) -> str:
    """Return a Markdown table, the best in the real environment first, and the measures below."""
    lines = ["| | real return [95%] | return in the world [95%] |", "|---|---|---|"]
    means, others = _means(real), _means(imagined)
    for name in sorted(means, key=lambda name: -means[name][0]):
        cells = ("{:.2f} [{:.2f}, {:.2f}]".format(*part[name]) for part in (means, others))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for name, label in (
        ("spearman", "rank correlation (Spearman)"),
        ("pearson", "correlation (Pearson)"),
        ("rank_violation", "mean maximum rank violation, in real returns"),
    ):
        value, low, high = getattr(ranking, name)
        lines.append(f"{label}: {value:.2f} [{low:.2f}, {high:.2f}]  ")
    return "\n".join(lines) + "\n"


def _load_policies(runs: list[str], shares: Sequence[float], world: SimulatedEnvSpec) -> dict[str, RankedPolicy]:
    """Load the runs' agents, with every share of random actions, and add random actions alone."""
    groups = parse_run_groups(runs)
    real_env = common_env_spec(groups)
    policies: dict[str, RankedPolicy] = {}
    for name, folders in groups:
        for folder in folders:
            policy, env = load_agent(folder)
            observe = env.observe if isinstance(env, EncodedEnvSpec) else "frame"
            observed = SimulatedEnvSpec(**{**vars(world), "observe": observe})
            spaces = _common_spaces(env, observed, folder)
            label = name if len(folders) == 1 else f"{name} {folder.name}"
            for share in shares:
                mixed = PartlyRandomPolicy(policy, spaces, share) if share else policy
                policies[f"{label}, {share:.0%} random" if share else label] = RankedPolicy(mixed, env, observed)
    return policies | {RANDOM_POLICY: RankedPolicy(None, real_env, world)}


def _common_spaces(real: EnvSpec, world: EnvSpec, run: Path) -> EnvSpaces:
    """Return the spaces of both environments; raise ValueError where they differ."""
    found = []
    for spec in (real, world):
        env = spec.open(1, seed=0)
        found.append(env.spaces)
        env.close()
    (shape, sizes), (world_shape, world_sizes) = ((each.observation.shape, each.action_sizes) for each in found)
    if shape != world_shape or sizes != world_sizes:
        raise ValueError(
            f"{run}: its agent observes {list(shape)} and takes {sizes} (discrete, continuous) actions in {real}; the "
            f"world has {list(world_shape)} and {world_sizes}"
        )
    return found[0]


def _means(results: Mapping[str, EvaluationResult]) -> dict[str, tuple[float, float, float]]:
    return {name: (float(np.mean(result.returns)), *result.interval()) for name, result in results.items()}
