"""The policy that a world comes with, as a policy that acts in environments."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from vwm.core.capabilities import HasTrainedPolicy
from vwm.core.simulator import Simulator
from vwm.core.states import NestedState, merge_states
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import PolicyStep


class WorldPolicy:
    """Acts with the policy that a simulator comes with, as an ``ActingPolicy``; discrete actions are sampled.

    Args:
        simulator: the world that has the policy.
        spaces: of the environment, the world itself or the real one.

    Raises:
        ValueError: the world has no policy, or the environment other frames or actions.
    """

    def __init__(self, simulator: Simulator, spaces: EnvSpaces) -> None:
        if not (isinstance(simulator, HasTrainedPolicy) and simulator.has_trained_policy):
            raise ValueError(f"{simulator.spec.title} comes with no policy: train one in it with vwm agent train")
        kind, size = simulator.spec.actions.kind, simulator.spec.actions.size
        for name, given, wanted in (
            ("shows frames", spaces.observation.shape, simulator.spec.observation.shape),
            ("takes actions", (spaces.actions.kind, spaces.actions.size), (kind, size)),
        ):
            if given != wanted:
                raise ValueError(f"the environment {name} {given}, the policy was trained on {wanted}")
        self.simulator = simulator
        self.discrete = kind == "discrete"
        self.device: torch.device = simulator.device

    def init_carry(self, batch: int) -> NestedState:
        """See ``Agent.init_carry``."""
        return self.simulator.init_policy(batch)

    def act(self, carry: NestedState, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; the policy is the same whether it explores or not."""
        empty = tree_map(torch.zeros_like, carry)
        carry = merge_states(time_step.is_first, empty, carry)
        carry, chosen = self.simulator.run_policy(carry, time_step.observation)
        if self.discrete:
            chosen = torch.distributions.Categorical(logits=chosen.float()).sample()
        return PolicyStep(chosen, carry, {})
