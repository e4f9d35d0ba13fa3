"""Dyna-Q's episodes against its planning steps (Sutton and Barto, 2018, figure 8.2), as a table and a figure.

Run ``python tools/dyna_planning_steps.py docs/dyna_maze.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.rl.algorithm import TrainingSetup
from vwm.rl.algorithms.dyna_q import DynaQ
from vwm.rl.evaluation import evaluate_policy
from vwm.runs.run_folder import RunFolder

MAZE = GymnasiumEnvSpec("vwm/DynaMaze-v0")
SHORTEST, NEAR = 14, 20
"""Steps of the shortest way; and of episodes that count as near it: a tenth of the actions are random."""


def episode_lengths(planning_steps: int, seed: int, episodes: int) -> list[int]:
    """Train from scratch; return the steps of each episode."""
    torch.manual_seed(seed)
    agent = DynaQ(MAZE, planning_steps)
    with TemporaryDirectory() as folder:
        agent.set_up(TrainingSetup(RunFolder(Path(folder)), steps=1, seed=seed, device=torch.device("cpu")))
        lengths: list[int] = []
        while len(lengths) < episodes:
            lengths += [int(row["length"]) for row in agent.step()["episodes"]]
    agent.close()
    return lengths


def plot(lengths: dict[int, NDArray[np.int64]], path: Path) -> None:
    """Draw the means over seeds from the second episode on, as the book does."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for planning_steps, rows in lengths.items():
        axes.plot(np.arange(2, rows.shape[1] + 1), rows[:, 1:].mean(0), label=f"{planning_steps} planning steps")
    axes.axhline(SHORTEST, color="gray", linewidth=0.8, linestyle=":", label="shortest way")
    axes.set(xlabel="episode", ylabel="steps", ylim=(0, 800))
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--planning-steps", type=int, nargs="+", default=[0, 5, 50])
    options = parser.parse_args()
    lengths = {}
    for planning_steps in options.planning_steps:
        rows = [episode_lengths(planning_steps, seed, options.episodes) for seed in range(options.seeds)]
        lengths[planning_steps] = np.array(rows)
        means = lengths[planning_steps].mean(0)
        near = next((number for number, mean in enumerate(means, 1) if mean <= NEAR), None)
        print(
            f"{planning_steps} planning steps: first episode {means[0]:.0f}, second {means[1]:.0f}, last ten "
            f"{means[-10:].mean():.1f}; the mean is at most {NEAR} from episode {near} on"
        )
    random = evaluate_policy(None, MAZE, options.seeds, seed=0).lengths
    print(f"random actions: {random.mean():.0f} steps")
    plot(lengths, options.figure)


if __name__ == "__main__":
    main()
