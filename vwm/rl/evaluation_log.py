"""Evaluations in the course of a training: played, written down and drawn, for every way of training alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vwm.envs.batched_envs import EnvSpec
from vwm.rl.agent import ActingPolicy
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.runs.metric_tables import MetricRow, MetricTable
from vwm.runs.run_curves import plot_run_curves

EVALUATION_SEED_OFFSET = 1_000_000
"""Added to the run's seed for the games of evaluations, so that they share no episode with training."""


class EvaluationSettings(Protocol):
    """What of a training's settings an evaluation needs."""

    folder: Path
    game: EnvSpec
    eval_env: EnvSpec
    evaluate_episodes: int
    seed: int
    video: bool


def evaluate_and_log(
    training: EvaluationSettings,
    player: ActingPolicy,
    name: str,
    step: int,
    tables: Mapping[str, MetricTable],
    random: float,
) -> EvaluationResult:
    """Evaluate, add to ``evaluations.csv``, write the video and draw ``curves.png`` anew.

    Where the agent learns in another game than it is judged in, a learned world for example, the row also has
    ``imagined``, its mean return there in the training episodes since the evaluation before (NaN where none ended), and
    ``gap``, how much more that is than what it really earned: an agent that lives on its world's faults widens it.

    Args:
        training: its settings.
        player: who is judged.
        name: of the agent, for people.
        step: decisions so far.
        tables: episodes, evaluations and updates.
        random: mean return of random actions.
    """
    episodes, evaluations, updates = (tables[name].rows() for name in ("episodes", "evaluations", "updates"))
    found = evaluate_policy(
        player,
        training.eval_env,
        training.evaluate_episodes,
        training.seed + EVALUATION_SEED_OFFSET,
        video=training.video,
    )
    low, high = found.interval()
    mean, length = float(found.returns.mean()), float(found.lengths.mean())
    row = {"mean": mean, "low": low, "high": high, "length": length}
    if training.eval_env != training.game:
        imagined = mean_return_since_evaluation(episodes, evaluations)
        row |= {"imagined": imagined, "gap": imagined - mean}
    tables["evaluations"].add(step, **row)
    evaluations.append({"step": step, **row})
    write_evaluation_video(found, training.folder / "videos" / f"{step:09d}.mp4")
    where = f"{training.game}"
    if training.eval_env != training.game:
        where += f", judged in {training.eval_env}"
    plot_run_curves(training.folder / "curves.png", episodes, evaluations, updates, random, f"{name}, {where}")
    return found


def is_best_evaluation(evaluations: Sequence[MetricRow]) -> bool:
    """Whether the last evaluation so far has the highest mean, or shares it: of equals the later has learned more."""
    return evaluations[-1]["mean"] >= max(row["mean"] for row in evaluations)


def mean_return_since_evaluation(episodes: Sequence[MetricRow], evaluations: Sequence[MetricRow]) -> float:
    """Mean return of the training episodes that ended since the last evaluation; NaN where none did."""
    last = max((row["step"] for row in evaluations), default=-1)
    returns = [row["return"] for row in episodes if row["step"] > last]
    return sum(returns) / len(returns) if returns else float("nan")


def write_evaluation_video(found: EvaluationResult, path: Path) -> None:
    """The first episode of an evaluation, where it has pictures."""
    if found.frames is None:
        return
    from vwm.data.video_encoding import write_video

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side - side % 2 for side in found.frames.shape[1:3])  # H.264 wants even sides
    write_video(path, found.frames[:, :height, :width], fps=15)
