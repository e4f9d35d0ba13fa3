"""Evaluations during a training: played, written to a table, drawn and filmed; the same for every algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vwm.core.checks import check_positive
from vwm.envs.batched_envs import EnvSpec
from vwm.rl.agent import ActingPolicy, Agent
from vwm.rl.evaluation import EvaluationResult, evaluate_policy
from vwm.rl.imagined_returns import Trajectory, imagined_return
from vwm.runs.metric_tables import MetricRow, MetricTable
from vwm.runs.run_curves import plot_run_curves
from vwm.runs.run_folder import RunFolder

EVALUATION_SEED_OFFSET = 1_000_000
"""Added to the run's seed for evaluations, so that they share no episode with training."""

IMAGINED_EPISODES = 4
"""Episodes of an evaluation whose return the agent's world model predicts, too."""


@dataclass(frozen=True)
class EvaluationConfig:
    """When and where a training evaluates its policy.

    Attributes:
        every: steps from one evaluation to the next, in the algorithm's unit; 0 evaluates at the end only.
        episodes: of each evaluation.
        env: the environment of evaluations, where it differs from that of training: the real one of an agent that
            learns in a world model. The returns in both are plotted together; where the two diverge, the agent exploits
            errors of the world model.
        video: write a video of every evaluation's first episode.

    Raises:
        ValueError: a count is out of range.
    """

    every: int = 10_000
    episodes: int = 20
    env: EnvSpec | None = None
    video: bool = True

    def __post_init__(self) -> None:
        check_positive(episodes=self.episodes)
        if self.every < 0:
            raise ValueError(f"evaluation.every must be 0 or more, got {self.every}")


def learns_in_simulator(env: EnvSpec, eval_env: EnvSpec) -> bool:
    """Return whether an agent learns in a simulator of what it is evaluated in, and not, say, in other levels of it."""
    return env.is_simulated and env != eval_env


class EvaluationLog:
    """Evaluates a policy and writes the run's record of it.

    Args:
        folder: of the run.
        env: what the policy learns in.
        eval_env: what it is evaluated in.
        config: number of episodes, video.
        seed: of the run.
    """

    def __init__(self, folder: RunFolder, env: EnvSpec, eval_env: EnvSpec, config: EvaluationConfig, seed: int) -> None:
        self.folder = folder
        self.env = env
        self.eval_env = eval_env
        self.config = config
        self.seed = seed + EVALUATION_SEED_OFFSET

    def random_return(self) -> float:
        """Return the mean return of random actions."""
        return float(evaluate_policy(None, self.eval_env, self.config.episodes, self.seed).returns.mean())

    def evaluate(
        self, policy: ActingPolicy, step: int, tables: Mapping[str, MetricTable], random_return: float
    ) -> EvaluationResult:
        """Evaluate, add a row to ``evaluations``, write the video and draw ``curves.png`` again.

        Where the agent learns in a simulator and is evaluated in another environment, the row also has ``imagined``,
        its mean return there in the training episodes since the previous evaluation (NaN where none ended), and
        ``gap``, how much larger that is than the return of the evaluation. Of an agent that learns a world model in a
        real environment, ``imagined`` is the mean return that the model predicts for the evaluation's first episodes
        (``imagined_return``), and ``gap`` how much larger that is than the real return of the same episodes. The gap
        grows where an agent exploits errors of its world model.

        Args:
            policy: to be evaluated.
            step: of the training.
            tables: ``episodes``, ``evaluations`` and ``updates``.
            random_return: mean return of random actions.
        """
        episodes, evaluations, updates = (tables[name].rows() for name in ("episodes", "evaluations", "updates"))
        in_simulator = learns_in_simulator(self.env, self.eval_env)
        own_world = isinstance(policy, Agent) and policy.imagination_horizon > 0 and not in_simulator
        result = evaluate_policy(
            policy,
            self.eval_env,
            self.config.episodes,
            self.seed,
            record_video=self.config.video,
            trajectories=IMAGINED_EPISODES * own_world,
        )
        low, high = result.interval()
        mean, length = float(result.returns.mean()), float(result.lengths.mean())
        row = {"mean": mean, "low": low, "high": high, "length": length}
        title = f"{type(policy).__name__}, {self.env}"
        if self.eval_env != self.env:
            title += f", evaluated in {self.eval_env}"
        if in_simulator:
            imagined = mean_return_since_evaluation(episodes, evaluations)
            row |= {"imagined": imagined, "gap": imagined - mean}
        elif isinstance(policy, Agent) and result.trajectories:
            row |= compare_imagined_returns(policy, result.trajectories)
        tables["evaluations"].add(step, **row)
        evaluations.append({"step": step, **row})
        write_evaluation_video(result, self.folder.videos / f"{step:09d}.mp4")
        plot_run_curves(self.folder.path / "curves.png", episodes, evaluations, updates, random_return, title)
        return result


def compare_imagined_returns(agent: Agent, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return ``imagined``, the mean return that an agent's world model predicts for its episodes, and ``gap``."""
    modes = {module: module.training for module in agent.modules()}
    simulator, horizon = agent.simulator(), agent.imagination_horizon  # sets its networks to evaluation
    imagined = [imagined_return(simulator, trajectory, horizon) for trajectory in trajectories]
    for module, mode in modes.items():
        module.training = mode
    real = [trajectory.real_return for trajectory in trajectories]
    mean = sum(imagined) / len(imagined)
    return {"imagined": mean, "gap": mean - sum(real) / len(real)}


def is_best_evaluation(evaluations: Sequence[MetricRow]) -> bool:
    """Return whether the last evaluation has the highest mean so far; of equal ones the later counts."""
    return evaluations[-1]["mean"] >= max(row["mean"] for row in evaluations)


def mean_return_since_evaluation(episodes: Sequence[MetricRow], evaluations: Sequence[MetricRow]) -> float:
    """Average the returns of the training episodes that ended since the last evaluation; NaN where none did."""
    last = max((row["step"] for row in evaluations), default=-1)
    returns = [row["return"] for row in episodes if row["step"] > last]
    return sum(returns) / len(returns) if returns else float("nan")


def write_evaluation_video(result: EvaluationResult, path: Path) -> None:
    """Write the first episode of an evaluation, where it has images."""
    if result.frames is None:
        return
    from vwm.data.video_encoding import write_video

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side - side % 2 for side in result.frames.shape[1:3])  # H.264 requires even sides
    write_video(path, result.frames[:, :height, :width], fps=15)
