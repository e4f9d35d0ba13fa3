"""The cross-entropy method against random shooting in the world that a PETS run has learned, by the returns of plans.

Run ``python tools/compare_planners.py runs/pets_pendulum``. Every planner plays the same episodes, with as many action
sequences per decision as the run's own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from vwm.cli.agent_commands import load_agent
from vwm.planning.random_shooting import RandomShooting
from vwm.rl.algorithms.pets import PETS
from vwm.rl.evaluation import evaluate_policy


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, env = load_agent(options.run)
    if not isinstance(policy, PETS):
        raise ValueError(f"{options.run}: is a run of {type(policy).__name__}, which does not plan as PETS does")
    own = policy.planner
    sequences = own.samples * own.iterations
    shooting = RandomShooting(horizon=own.horizon, samples=sequences, max_batch_size=own.max_batch_size)
    planners = {
        f"{type(own).__name__}, {own.iterations} x {own.samples} sequences": own,
        f"random shooting, {sequences} sequences": shooting,
        f"random shooting, {4 * sequences} sequences": replace(shooting, samples=4 * sequences),
    }
    for name, planner in planners.items():
        policy.planner = planner
        result = evaluate_policy(policy, env, options.episodes, options.seed)
        low, high = result.interval()
        print(f"{name}: {result.returns.mean():.1f} ({low:.1f} to {high:.1f})", flush=True)
    random = evaluate_policy(None, env, options.episodes, options.seed)
    print(f"random actions: {random.returns.mean():.1f}")


if __name__ == "__main__":
    main()
