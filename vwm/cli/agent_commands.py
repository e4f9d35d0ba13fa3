"""``vwm agent train``, ``eval``, ``play`` and ``export``: train agents from configs and use the results."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from vwm.core.atomic_files import atomic_write_text
from vwm.core.blocks import resolve_compile
from vwm.core.command_output import format_command, print_output
from vwm.core.devices import resolve_device
from vwm.envs.batched_envs import EnvSpec
from vwm.rl.agent import ActingPolicy
from vwm.rl.agent_training import AgentTraining
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.evaluation_log import write_evaluation_video
from vwm.runs.config_files import compose_config_arguments
from vwm.runs.metric_loggers import make_metric_loggers
from vwm.runs.options import add_compile_option, add_logger_options
from vwm.runs.run_folder import RunFolder
from vwm.runs.saved_config import check_fixed_settings, read_saved_config
from vwm.runs.training_runtime import TrainingRuntime
from vwm.worlds.bundle import save_simulator

FIXED_SETTINGS = (
    "seed", "evaluation.env", "algorithm.class_path",
    *(f"algorithm.init_args.{name}" for name in ("env", "agent", "policy", "bundle", "data", "observe", "num_envs")),
)  # fmt: skip
"""Settings that must not change when a run is resumed."""
PRECISIONS = ("32-true", "bf16-mixed")
"""Precisions of updates, by Lightning's names; float16 would require a gradient scaler in every algorithm."""
TRAINING_SETTINGS = tuple(name for name in inspect.signature(AgentTraining).parameters)
"""Top-level keys of a config that describe the training; the others are of the command."""


def make_agent_parser() -> ArgumentParser:
    """Make the parser of ``vwm agent train``."""
    parser = ArgumentParser(
        prog="vwm agent train",
        usage="vwm agent train -c CONFIG [--KEY VALUE ...]   (vwm agent train --help lists the keys)",
        description="Train an agent: act, store, update, evaluate.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", action="config", help="a YAML of everything")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true", help="of updates")
    add_compile_option(parser, "torch.compile the agent's networks; auto compiles on CUDA")
    add_logger_options(parser)
    parser.add_class_arguments(AgentTraining, None)
    return parser


def train_agent(argv: list[str]) -> None:
    """Run a training, from its last checkpoint on.

    Args:
        argv: what follows ``vwm agent train``.
    """
    parser = make_agent_parser()
    config = parse_agent_config(parser, argv)
    training = make_training(parser, config)
    del config["config"]  # the run's own file is complete
    text = parser.dump(config, skip_unset=False)
    run = training.folder
    with run.lock():
        check_same_run(run, parser, text)
        training.runtime = make_runtime(training, config, yaml.safe_load(text))
        run.write_config(text)
        try:
            training.run()
        finally:
            for logger in training.runtime.loggers:
                logger.close()
    next_command = None if training.algorithm.evaluates_itself else format_command("agent", "eval", run.path)
    print_output(run.path, "checkpoints, metrics/, curves.png", next_command)


def parse_agent_config(parser: ArgumentParser, argv: list[str]) -> Namespace:
    """Parse the arguments of ``vwm agent train``, with the configs merged over their bases."""
    return parser.parse_args(compose_config_arguments(argv))


def make_training(parser: ArgumentParser, config: Namespace) -> AgentTraining:
    """Make the training that a config describes."""
    made = parser.instantiate(config)
    return AgentTraining(**{name: made[name] for name in TRAINING_SETTINGS})


def make_runtime(training: AgentTraining, config: Namespace, settings: dict[str, Any]) -> TrainingRuntime:
    """Convert the command's options to a runtime: precision by Lightning Fabric, compilation and loggers.

    Args:
        training: the training to run.
        config: the parsed command.
        settings: the parsed command as plain values, for Weights & Biases.

    Raises:
        ValueError: the algorithm supports only float32 without compilation.
    """
    device, supported = resolve_device(training.device), training.algorithm.supports_runtime
    if not supported and (config.precision != "32-true" or config.compile is True):
        raise ValueError(f"{type(training.algorithm).__name__} takes neither --precision nor --compile")
    runtime = TrainingRuntime(compile=supported and resolve_compile(config.compile, device))
    if config.precision != "32-true":
        from lightning.fabric import Fabric

        _, _, index = str(device).partition(":")
        devices = [int(index)] if index else 1
        fabric = Fabric(accelerator=device.type, devices=devices, precision=config.precision)
        runtime = replace(runtime, autocast=fabric.autocast)
    loggers = make_metric_loggers(
        training.folder,
        wandb=config.wandb,
        wandb_online=config.wandb_online,
        tensorboard=config.tensorboard,
        settings=settings,
    )
    return replace(runtime, loggers=loggers)


def check_same_run(run: RunFolder, parser: ArgumentParser, config: str) -> None:
    """Raise ValueError if one of ``FIXED_SETTINGS`` differs from that of the run in the folder."""
    if run.config.is_file() and run.last_checkpoint.is_file():
        check_fixed_settings(run, parser, config, _is_fixed)


def _is_fixed(name: str) -> bool:
    return any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED_SETTINGS)


def evaluate_agent(
    run: Path,
    episodes: int = 100,
    seed: int = 2_000_000,
    num_envs: int = 16,
    best: bool = False,
    allow_packages: list[str] | None = None,
) -> None:
    """Evaluate a trained agent, and random actions, over the same number of episodes.

    Args:
        run: folder of a run; ``evaluation.json`` is written there.
        episodes: number of episodes of the agent, and of random actions.
        seed: seed of the environments; evaluations during training use other seeds.
        num_envs: largest number of environments that are stepped together.
        best: use the weights with the best evaluation of the training instead of the last ones. They were selected by
            those evaluations, so this command uses other episodes.
        allow_packages: packages other than vwm whose code the run's config may name, and which are then imported.
    """
    policy, env_spec = load_agent(run, best, allow_packages)
    trained = evaluate_policy(policy, env_spec, episodes, seed, num_envs)
    random = evaluate_policy(None, env_spec, episodes, seed, num_envs)
    result = {
        "run": run.name,
        "env": repr(env_spec),
        "seed": seed,
        "best": best,
        "agent": summarize_evaluation(trained),
        "random": summarize_evaluation(random),
        "torch": torch.__version__,
    }
    atomic_write_text(run / "evaluation.json", json.dumps(result, indent=2) + "\n")
    which = ", with the best weights" if best else ""
    print(f"{episodes} episodes each{which}, mean return [95% interval over episodes]")
    for name in ("agent", "random"):
        summary = result[name]
        assert isinstance(summary, dict)
        interval = f"[{summary['low']:.2f}, {summary['high']:.2f}]"
        print(f"{name:>8}  {summary['mean']:10.2f} {interval}   length {summary['length']:.1f}")
    print_achievements(trained, random)
    print_output(run / "evaluation.json", "every return", format_command("agent", "play", run))


def print_achievements(trained: EvaluationResult, random: EvaluationResult) -> None:
    """Print the share of episodes that reach each goal; nothing where the environment names no goals."""
    if not trained.achievements:
        return
    print(f"{'agent':>8}{'random':>8}   % of the episodes that reach a goal")
    for name, share in sorted(trained.achievements.items(), key=lambda item: -item[1]):
        print(f"{100 * share:8.1f}{100 * random.achievements.get(name, 0.0):8.1f}   {name}")
    if trained.score is not None and random.score is not None and len(trained.achievements) > 1:
        print(f"{trained.score:8.1f}{random.score:8.1f}   score: their geometric mean, as of Crafter's paper")


def summarize_evaluation(result: EvaluationResult) -> dict[str, Any]:
    """Return an evaluation as plain numbers."""
    low, high = result.interval()
    return {
        "mean": float(result.returns.mean()),
        "low": low,
        "high": high,
        "std": float(np.std(result.returns)),
        "length": float(result.lengths.mean()),
        "returns": [float(value) for value in result.returns],
        **({"achievements": dict(result.achievements), "score": result.score} if result.achievements else {}),
    }


def record_agent_videos(
    run: Path,
    out: Path | None = None,
    episodes: int = 1,
    seed: int = 3_000_000,
    best: bool = False,
    allow_packages: list[str] | None = None,
) -> None:
    """Write videos of a trained agent.

    Args:
        run: folder of a run.
        out: folder of the videos; ``play`` in the run by default.
        episodes: number of episodes, one video each.
        seed: seed of the first episode; each of the next has the next seed.
        best: use the weights with the best evaluation of the training instead of the last ones.
        allow_packages: packages other than vwm whose code the run's config may name, and which are then imported.
    """
    policy, env_spec = load_agent(run, best, allow_packages)
    out = out or run / "play"
    for episode in range(episodes):
        result = evaluate_policy(policy, env_spec, 1, seed + episode, record_video=True)
        path = out / f"{episode:03d}.mp4"
        write_evaluation_video(result, path)
        video = "no video: the environment has no images" if result.frames is None else str(path)
        print(f"return {result.returns[0]:.2f} in {result.lengths[0]} decisions: {video}")
    print_output(out, "the videos", format_command("agent", "compare", run))


def export_agent_world(
    run: Path,
    out: Path | None = None,
    title: str | None = None,
    fps: float = 15.0,
    starts: int = 16,
    best: bool = False,
    allow_packages: list[str] | None = None,
) -> None:
    """Make a bundle of the world model that an agent has learned.

    Args:
        run: folder of a run.
        out: folder to make; ``world`` in the run by default.
        title: display name; the run's name by default.
        fps: frames per second at which the player shows it.
        starts: number of starting contexts, which are drawn from the replay buffer.
        best: use the weights with the best evaluation of the training instead of the last ones.
        allow_packages: packages other than vwm whose code the run's config may name, and which are then imported.
    """
    simulator = load_agent_training(run, allow_packages).export_simulator(best, title or run.name, fps, starts)
    out = out or run / "world"
    save_simulator(simulator, out)
    print_output(out, "a world", format_command("bench", "play", out))


def load_agent(run: Path, best: bool = False, allow_packages: list[str] | None = None) -> tuple[ActingPolicy, EnvSpec]:
    """Load the policy of a run, saved last or with the best evaluation, and the environment that it is evaluated in.

    Raises:
        FileNotFoundError: there is no such run, or nothing was saved yet.
        ValueError: its algorithm keeps no policy to load.
    """
    training = load_agent_training(run, allow_packages)
    return training.load_policy(best), training.eval_env


def load_agent_training(run: Path, allow_packages: list[str] | None = None) -> AgentTraining:
    """Make a run's training from its config.

    Raises:
        FileNotFoundError, ConfigFileError, UntrustedConfigError: see ``read_saved_config``.
    """
    saved = read_saved_config(RunFolder(run), allow_packages or ())
    if "algorithm" not in saved:
        raise ValueError(f"{run}: is no run of vwm agent train (its config has no algorithm); see vwm export, vwm eval")
    parser = make_agent_parser()
    return make_training(parser, parser.parse_args(["-c", yaml.safe_dump({**saved, "run": str(run)})]))
