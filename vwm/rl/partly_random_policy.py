"""A policy that takes a share of random actions: from one trained policy, several of different return."""

from __future__ import annotations

import torch

from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ActingPolicy, Agent, PolicyCarry, PolicyStep
from vwm.rl.evaluation import sample_random_actions


class PartlyRandomPolicy:
    """Acts as another agent, and takes a uniform action instead with a probability (epsilon-greedy).

    Args:
        policy: the agent.
        spaces: of the environment.
        epsilon: probability of a random action, 0..1.

    Raises:
        ValueError: ``epsilon`` is out of range.
    """

    def __init__(self, policy: ActingPolicy, spaces: EnvSpaces, epsilon: float) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must lie in 0..1, got {epsilon:g}")
        self.policy = policy
        self.spaces = spaces
        self.epsilon = epsilon

    @property
    def device(self) -> torch.device:
        """See ``ActingPolicy.device``."""
        return self.policy.device

    def init_carry(self, batch: int) -> PolicyCarry:
        """See ``Agent.init_carry``."""
        return self.policy.init_carry(batch)

    def act(self, carry: PolicyCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; an agent's memory is of the actions that are taken."""
        chosen = self.policy.act(carry, time_step, explore)
        count = len(chosen.action)
        random = torch.rand(count) < self.epsilon
        if not random.any():
            return chosen
        drawn = sample_random_actions(self.spaces, count).to(chosen.action)
        mask = random.to(chosen.action.device).view(-1, *[1] * (chosen.action.ndim - 1))
        action = torch.where(mask, drawn, chosen.action)
        if isinstance(self.policy, Agent):
            return self.policy.observe(carry, time_step, action)
        return chosen._replace(action=action)
