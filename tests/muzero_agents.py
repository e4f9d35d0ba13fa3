"""Small MuZero agents, batches of their acting, and random sequences of time steps."""

from __future__ import annotations

import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.muzero import MuZeroAgent
from vwm.rl.algorithms.muzero_config import MuZeroNetworkConfig

SPACES = EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("discrete", 2))
IMAGE_SPACES = EnvSpaces(ObservationSpace.of_shape((32, 32, 3)), ActionSpace("discrete", 3))
SIZES = {"width": 16, "hidden": 16, "support_limit": 8, "prefix_hidden": 8, "projection_size": 8}


def make_agent(spaces: EnvSpaces = SPACES, network: dict[str, int] | None = None, **changes) -> MuZeroAgent:
    torch.manual_seed(0)
    config = MuZeroNetworkConfig(**SIZES, **network or {})
    return MuZeroAgent(spaces, **{"search": GumbelMuZeroSearch(4), "network": config, "batch_size": 6, **changes})


def make_time_steps(count: int, num_envs: int = 2, spaces: EnvSpaces = SPACES, length: int = 4) -> list[TimeStep]:
    """Episodes of a fixed length; their last time steps are terminal in the first environment only."""
    generator = torch.Generator().manual_seed(3)
    time_steps = []
    for t in range(count):
        shape = (num_envs, *spaces.observation.shape)
        observation = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            if spaces.observation.is_image
            else torch.randn(shape, generator=generator)
        )
        is_last = torch.tensor([t % length == length - 1] * num_envs)
        time_steps.append(
            TimeStep(
                observation,
                torch.rand(num_envs, generator=generator),
                torch.tensor([t % length == 0] * num_envs),
                is_last,
                is_last & (torch.arange(num_envs) == 0),
            )
        )
    return time_steps


def collect(agent: MuZeroAgent, steps: int, num_envs: int = 2) -> ReplayBatch:
    """Return a batch of time steps and of the agent's actions in them."""
    carry, policy_steps = agent.init_carry(num_envs), []
    time_steps = make_time_steps(steps, num_envs, agent.spaces)
    for time_step in time_steps:
        policy_steps.append(agent.act(carry, time_step, explore=True))
        carry = policy_steps[-1].carry
    stacked = TimeStep(*(torch.stack(x, 1) for x in zip(*time_steps, strict=True)))
    extras = {name: torch.stack([step.extras[name] for step in policy_steps], 1) for name in agent.extras}
    indices = torch.arange(num_envs * steps).view(num_envs, steps)
    return ReplayBatch(*stacked, torch.stack([step.action for step in policy_steps], 1), extras, indices)


def random_sequences(seed: int, length: int, batch: int = 200):
    """Sequences with terminated and truncated episodes, and with some first steps that follow no last step."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.rand(batch, length, generator=generator) < 0.15
    terminal = last & (torch.rand(batch, length, generator=generator) < 0.5)
    first = torch.cat((torch.rand(batch, 1, generator=generator) < 0.3, last[:, :-1]), dim=1)
    first |= torch.rand(batch, length, generator=generator) < 0.02
    reward, value = torch.randn(2, batch, length, generator=generator, dtype=torch.float64)
    policy = torch.rand(batch, length, 3, generator=generator, dtype=torch.float64)
    return reward, first, last, terminal, policy, value
