"""PlaNet: learning a world model and planning in it."""

import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.planning.cem import CEM
from vwm.rl.algorithms.planet import PlaNet
from vwm.rl.replay_buffer import ReplayBuffer

WORLD_MODEL = RSSMWorldModelConfig(
    deter=32, hidden=32, stoch=4, classes=0, cell="gru", prior_layers=1, norm="none", activation="relu", units=32,
    vector_layers=1, symlog=False, reconstruction_loss="normal", reward_distribution="normal", reward_layers=1,
        predict_continue=False, discount_horizon=0,
    kl=KLLoss("elbo", free_nats=1.0),
)  # fmt: skip


def make_agent(kind: str = "continuous") -> PlaNet:
    torch.manual_seed(0)
    planner = CEM(
        horizon=3, samples=64, elites=8, iterations=3, keep_elites=0, selection="mean", init_std=1.0, noise_exponent=0.0
    )
    spaces = EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace(kind, 2))
    return PlaNet(spaces, WORLD_MODEL, planner, lr=3e-3, batch_size=16, batch_length=8)


def action_reward(action: torch.Tensor) -> torch.Tensor:
    """Reward discrete action 1, or the second dimension of a continuous action."""
    return action.float() if action.ndim == 1 else action[:, 1]


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_learns_rewards_and_plans_for_them(kind: str) -> None:
    agent, num_envs = make_agent(kind), 4
    replay = ReplayBuffer(400, num_envs, agent.spaces)
    false = torch.zeros(num_envs, dtype=torch.bool)
    reward = torch.zeros(num_envs)
    for t in range(100):
        time_step = TimeStep(torch.randn(num_envs, 2) * 0.1, reward, false | (t == 0), false, false)
        action = torch.randint(2, (num_envs,)) if kind == "discrete" else torch.rand(num_envs, 2) * 2 - 1
        replay.add(time_step, action, {})
        reward = action_reward(action)
    losses = [agent.update(replay.sample(16, 8)).logs["loss/reward"] for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    policy_step = agent.act(agent.init_carry(num_envs), time_step, explore=False)
    assert (action_reward(policy_step.action) > 0.7).all()
    assert torch.equal(policy_step.carry.action, agent.world_model.rssm.encode_action(policy_step.action))


def test_noise_is_added_only_when_exploring() -> None:
    agent, false = make_agent(), torch.zeros(2, dtype=torch.bool)
    time_step = TimeStep(torch.randn(2, 2), torch.zeros(2), ~false, false, false)
    actions = []
    for explore in (False, False, True):
        torch.manual_seed(5)
        actions.append(agent.act(agent.init_carry(2), time_step, explore).action)
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])
    assert actions[2].abs().max() <= 1
