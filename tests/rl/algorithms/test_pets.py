"""PETS: learning an ensemble and planning in it."""

from __future__ import annotations

import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.planning import CEM, RandomShooting
from vwm.rl.algorithms.pets import PETS
from vwm.rl.replay_buffer import ReplayBuffer

PLANNERS = {
    "cem": CEM(horizon=2, samples=64, elites=8, iterations=3, keep_elites=0, selection="mean", noise_exponent=0.0),
    "random shooting": RandomShooting(horizon=2, samples=256),
}


@pytest.mark.parametrize(
    ("kind", "planner"), [("discrete", "cem"), ("continuous", "cem"), ("continuous", "random shooting")]
)
def test_learns_rewards_and_plans_for_them(kind: str, planner: str) -> None:
    torch.manual_seed(0)
    spaces = EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace(kind, 2))
    agent, num_envs = PETS(spaces, members=2, width=16, layers=1, particles=2, planner=PLANNERS[planner], lr=3e-3), 4
    replay = ReplayBuffer(400, num_envs, spaces, agent.extras)
    false, reward = torch.zeros(num_envs, dtype=torch.bool), torch.zeros(num_envs)
    for t in range(100):
        step = TimeStep(torch.randn(num_envs, 2) * 0.1, reward, false | (t == 0), false, false)
        action = torch.randint(2, (num_envs,)) if kind == "discrete" else torch.rand(num_envs, 2) * 2 - 1
        replay.add(step, action, agent.observe((), step, action).extras)
        reward = action.float() if kind == "discrete" else action[:, 1]
    errors = [agent.update(replay.sample(32, 2, single_episode=True)).logs["squared_error"] for _ in range(200)]
    assert errors[-1] < 0.3 * errors[0]
    taken = agent.act((), step, explore=False).action
    assert ((taken.float() if kind == "discrete" else taken[:, 1]) > 0.6).all()


def test_images_are_refused() -> None:
    with pytest.raises(ValueError, match="PETS plans over vectors"):
        PETS(EnvSpaces(ObservationSpace.image(16, 16), ActionSpace("discrete", 2)))
