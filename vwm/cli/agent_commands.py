"""``vwm agent train``, ``eval``, ``play`` and ``export``: train agents from configs and use the results."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

from vwm.envs.batched_envs import EnvSpec
from vwm.rl.agent import ActingPolicy
from vwm.rl.algorithms.controller_evolution import FITNESS_HISTORY_FILE
from vwm.rl.algorithms.imagination import ImaginationTraining
from vwm.rl.algorithms.ppo import PPO_MODEL_FILE, PPOTraining
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.evaluation_log import write_evaluation_video
from vwm.rl.online_training import OnlineTraining
from vwm.rl.training_run import TrainingRun
from vwm.runs.training_checkpoint import CHECKPOINT_FILE
from vwm.worlds.bundle import save_simulator

CONFIG_FILE = "config.yaml"
CHECKPOINT_PATTERNS = (f"checkpoint/{CHECKPOINT_FILE}", PPO_MODEL_FILE, f"*/{FITNESS_HISTORY_FILE}")
"""What trainings go on from, in a run's folder."""
FIXED_SETTINGS = ("class_path", "game", "agent", "policy", "environments", "seed")
"""Settings that make a run what it is."""
PolicyTraining = OnlineTraining | PPOTraining | ImaginationTraining
"""Trainings whose agents play in the real game; the others write their own evaluation."""
AGENT_EXAMPLES = """examples:
  vwm agent train -c configs/agents/tdmpc2_pendulum.yaml
  vwm agent train -c configs/agents/tdmpc2_pendulum.yaml --training.init_args.seed 1 --training.init_args.run runs/s1
  vwm agent train -c configs/agents/dreamer_v3_cartpole.yaml --print_config        every key and its value
A run that stopped, for whatever reason, goes on when the same command is given again.
"""


def make_agent_parser() -> ArgumentParser:
    """What ``vwm agent train`` understands."""
    parser = ArgumentParser(
        prog="vwm agent train",
        description="Train an agent: play, keep, learn, evaluate.",
        epilog=AGENT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", action="config", help="a YAML of everything")
    parser.add_subclass_arguments(TrainingRun, "training", required=True)
    return parser


def train_agent(argv: list[str]) -> None:
    """Run a training, from where it stands.

    Args:
        argv: what follows ``vwm agent train``.
    """
    parser = make_agent_parser()
    config = parser.parse_args(argv)
    folder = Path(config.training.init_args.run)
    training: TrainingRun = parser.instantiate(config).training
    del config["config"]  # the run's own file stands alone
    text = parser.dump(config, skip_unset=False)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_run_folder(folder):
        check_same_run(folder, parser, config)
        aside = folder / f"{CONFIG_FILE}.tmp"
        aside.write_text(text)
        aside.rename(folder / CONFIG_FILE)
        training.run()
    if isinstance(training, PolicyTraining):
        print(f"{folder}: curves.png and tables. Next: vwm agent eval {folder}, vwm agent play {folder}")


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder for as long as this one lives. Raises ValueError: one is there."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another training writes there: wait for it, or choose another run") from None
        yield


def check_same_run(folder: Path, parser: ArgumentParser, config: Namespace) -> None:
    """Nothing that makes a run what it is may change once something of it was saved.

    Raises:
        ValueError: another agent, game, number of copies or seed than it was begun with.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() or not any(any(folder.glob(saved)) for saved in CHECKPOINT_PATTERNS):
        return
    now = dict(config.training.items())
    for name, old in parser.parse_args(["-c", str(path)]).training.items():
        if name.removeprefix("init_args.").split(".")[0] in FIXED_SETTINGS and now.get(name, old) != old:
            raise ValueError(
                f"{folder} was begun with training.{name}={old}, not {now[name]}: go on with that, or choose another "
                "folder (training.init_args.run)"
            )


def evaluate_agent(
    run: Path, episodes: int = 100, seed: int = 2_000_000, side_by_side: int = 16, best: bool = False
) -> None:
    """Play a trained agent, and random actions, in the same number of episodes.

    Args:
        run: folder of a run; ``evaluation.json`` is written there.
        episodes: how many of each.
        seed: of the games; the training's own evaluations use others.
        side_by_side: copies of the game at most.
        best: the agent as it did best in an evaluation of the training, rather than as it was saved last. It was chosen
            by those evaluations; the episodes played here are others.
    """
    player, game = load_agent(run, best)
    found = evaluate_policy(player, game, episodes, seed, side_by_side)
    control = evaluate_policy(None, game, episodes, seed, side_by_side)
    result = {
        "run": run.name,
        "game": repr(game),
        "seed": seed,
        "best": best,
        "agent": summarize_evaluation(found),
        "random": summarize_evaluation(control),
        "torch": torch.__version__,
    }
    aside = run / "evaluation.tmp"
    aside.write_text(json.dumps(result, indent=2) + "\n")
    aside.rename(run / "evaluation.json")
    which = ", of the weights that did best" if best else ""
    print(f"{episodes} episodes each{which}, mean return [95% interval over episodes]")
    for name in ("agent", "random"):
        told = result[name]
        assert isinstance(told, dict)
        print(f"{name:>8}  {told['mean']:10.2f} [{told['low']:.2f}, {told['high']:.2f}]   length {told['length']:.1f}")


def summarize_evaluation(found: EvaluationResult) -> dict[str, float | list[float]]:
    """An evaluation in numbers."""
    low, high = found.interval()
    return {
        "mean": float(found.returns.mean()),
        "low": low,
        "high": high,
        "std": float(np.std(found.returns)),
        "length": float(found.lengths.mean()),
        "returns": [float(value) for value in found.returns],
    }


def record_agent_videos(
    run: Path, out: Path | None = None, episodes: int = 1, seed: int = 3_000_000, best: bool = False
) -> None:
    """Write videos of a trained agent's play.

    Args:
        run: folder of a run.
        out: folder of the videos; ``play`` in the run by default.
        episodes: how many, a video each.
        seed: of the first game; each has its own.
        best: the agent as it did best in an evaluation of the training, rather than as it was saved last.
    """
    (player, game), out = load_agent(run, best), out or run / "play"
    for episode in range(episodes):
        found = evaluate_policy(player, game, 1, seed + episode, video=True)
        path = out / f"{episode:03d}.mp4"
        write_evaluation_video(found, path)
        drawn = "no pictures: the game draws none" if found.frames is None else str(path)
        print(f"return {found.returns[0]:.2f} in {found.lengths[0]} decisions: {drawn}")


def export_agent_world(
    run: Path, out: Path | None = None, title: str = "", fps: float = 15.0, contexts: int = 16, best: bool = False
) -> None:
    """Make a bundle of the world that an agent has learned.

    Args:
        run: folder of a run.
        out: folder to make; ``world`` in the run by default.
        title: for people; the run's name by default.
        fps: frames a second at which people play it.
        contexts: observations of the replay that come with it, to begin from.
        best: the world of the agent as it did best in an evaluation, rather than as it was saved last.
    """
    training, out = load_agent_training(run), out or run / "world"
    if not isinstance(training, OnlineTraining):
        raise ValueError(f"{run}: was trained by {type(training).__name__}, which learns no world")
    agent = training.player(best)
    simulator = agent.simulator(title or run.name, fps)
    with tempfile.TemporaryDirectory(dir=run) as ring:
        replay = training.played(agent, Path(ring))
        simulator.starts = replay.sample(contexts, simulator.context_frames, single_episode=True).observation
    save_simulator(simulator, out)
    print(f"bundle: {out}")


def load_agent(run: Path, best: bool = False) -> tuple[ActingPolicy, EnvSpec]:
    """The agent of a run, as it was saved last or as it did best, and the game that it is judged in.

    Raises:
        FileNotFoundError: there is no such run, or nothing was saved yet.
        ValueError: its training keeps no agent of this kind.
    """
    training = load_agent_training(run)
    if not isinstance(training, PolicyTraining):
        raise ValueError(f"{run}: was trained by {type(training).__name__}, which writes its own evaluation")
    return training.player(best), training.eval_env


def load_agent_training(run: Path) -> TrainingRun:
    """The settings of a run. Raises FileNotFoundError where there is none."""
    if not (run / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{run / CONFIG_FILE}: there is none; give the folder of a run of `vwm agent train`")
    parser = make_agent_parser()
    config = parser.parse_args(["-c", str(run / CONFIG_FILE)])
    config.training.init_args.run = run
    training: TrainingRun = parser.instantiate(config).training
    return training
