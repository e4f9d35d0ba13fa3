"""Imagined returns are the rewards that a world model predicts for an episode's actions, window by window."""

from pathlib import Path

import pytest
import torch
from count_world import CountWorld

from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.planning.cem import CEM
from vwm.rl.algorithms.pets import PETS
from vwm.rl.evaluation import evaluate_policy
from vwm.rl.evaluation_log import EvaluationConfig, EvaluationLog, compare_imagined_returns
from vwm.rl.imagined_returns import Trajectory, imagined_return
from vwm.runs.metric_tables import MetricTable
from vwm.runs.run_folder import RunFolder


def count_trajectory(actions: list[int]) -> Trajectory:
    observations = torch.arange(3.0 * (len(actions) + 1)).view(-1, 3)
    return Trajectory(observations, torch.tensor(actions), torch.ones(len(actions)))


@pytest.mark.parametrize(
    ("actions", "horizon", "expected"),
    [
        ([1, 2, 3, 1, 0, 2, 3], 3, (1 + 3 + 6) + (1 + 1 + 3) + 3),  # the world counts from 0 in each window
        ([1, 2, 3, 1, 0, 2, 3], 7, 1 + 3 + 6 + 7),  # nothing counts after the termination at 7
        ([3, 3, 3, 3], 1, 3 + 3 + 3 + 3),
        ([2], 5, 2),
    ],
)
def test_predicted_rewards_are_summed_by_window_until_a_predicted_termination(actions, horizon, expected) -> None:
    world = CountWorld(shows="vectors")
    assert imagined_return(world, count_trajectory(actions), horizon) == expected
    assert not any(world.decoded)


def test_every_window_sees_the_real_observations_and_actions_before_it() -> None:
    seen = []

    class WatchedWorld(CountWorld):
        def reset(self, context, seed=0, context_actions=None):
            seen.append((context[..., 0].tolist(), None if context_actions is None else context_actions.tolist()))
            return super().reset(context, seed, context_actions)

    imagined_return(WatchedWorld(shows="vectors"), count_trajectory([1, 2, 3, 0, 2]), 2)
    assert seen == [([[0.0]], None), ([[0.0, 3.0, 6.0], [6.0, 9.0, 12.0]], [[1, 2], [3, 0]])]


def make_pets(spec: GymnasiumEnvSpec) -> PETS:
    envs = spec.open(1, seed=0)
    envs.close()
    torch.manual_seed(0)
    planner = CEM(horizon=3, samples=4, elites=2, iterations=1, max_batch_size=64)
    return PETS(envs.spaces, members=2, width=8, layers=1, particles=2, planner=planner)


def test_evaluations_of_an_agent_with_a_world_model_have_its_imagined_return(tmp_path: Path) -> None:
    spec = GymnasiumEnvSpec("Pendulum-v1", time_limit=5)
    agent = make_pets(spec)
    tables = {name: MetricTable(tmp_path / f"{name}.csv") for name in ("episodes", "evaluations", "updates")}
    log = EvaluationLog(RunFolder(tmp_path), spec, spec, EvaluationConfig(episodes=2, video=False), seed=0)
    generator = torch.get_rng_state()
    result = log.evaluate(agent, 10, tables, random_return=0.0)
    assert torch.equal(torch.get_rng_state(), generator)
    (row,) = tables["evaluations"].rows()
    imagined = [imagined_return(agent.simulator(), episode, 3) for episode in result.trajectories]
    assert row["imagined"] == pytest.approx(sum(imagined) / 2)
    assert row["gap"] == pytest.approx(row["imagined"] - row["mean"])


def test_imagining_leaves_the_training_modes_of_the_networks() -> None:
    spec = GymnasiumEnvSpec("Pendulum-v1", time_limit=5)
    agent = make_pets(spec).train()
    compare_imagined_returns(agent, [Trajectory(torch.zeros(3, 3), torch.zeros(2, 1), torch.zeros(2))])
    assert all(module.training for module in agent.modules())


def test_trajectories_hold_what_was_seen_done_and_earned() -> None:
    spec = GymnasiumEnvSpec("Pendulum-v1", time_limit=4)
    result = evaluate_policy(make_pets(spec), spec, 3, seed=1, num_envs=2, trajectories=5)
    assert [len(t.actions) for t in result.trajectories] == [4, 4]
    assert [t.real_return for t in result.trajectories] == pytest.approx(result.returns[[0, 2]].tolist(), rel=1e-6)
    for observations, actions, rewards in result.trajectories:
        angle = torch.atan2(observations[:-1, 1], observations[:-1, 0])
        cost = angle**2 + 0.1 * observations[:-1, 2] ** 2 + 0.001 * (2 * actions[:, 0]) ** 2
        assert observations.shape == (5, 3) and torch.allclose(rewards, -cost, atol=1e-4)
