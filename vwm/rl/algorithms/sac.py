"""SAC (arXiv 1812.05905): soft actor-critic from replay, the model-free agent that MBPO is compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from vwm.core.checks import check_positive
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import Agent, PolicyStep, ReplayBatch, UpdateOutput
from vwm.rl.algorithms.soft_actor_critic import SACConfig, SoftActorCritic
from vwm.rl.transitions import transitions_of


class SAC(Agent):
    """See the module.

    Args:
        spaces: of the environments; observations are vectors, actions continuous.
        sac: see ``SACConfig``.
        batch_size: transitions of an update.

    Raises:
        ValueError: observations are no vectors, or actions not continuous.
    """

    single_episode = True
    batch_length = 2

    def __init__(self, spaces: EnvSpaces, sac: SACConfig = SACConfig(), batch_size: int = 256) -> None:
        super().__init__()
        check_positive(batch_size=batch_size)
        if spaces.observation.is_image:
            raise ValueError(
                f"{type(self).__name__} observes vectors, and the environment shows images: use TD-MPC2 or a Dreamer"
            )
        self.spaces = spaces
        self.batch_size = batch_size
        self.sac = SoftActorCritic(spaces.observation.shape[0], spaces.actions, sac)

    def init_carry(self, batch: int) -> tuple[()]:
        """See ``Agent.init_carry``; there is nothing to remember."""
        return ()

    @torch.no_grad()
    def act(self, carry: tuple[()], time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; the policy explores by itself."""
        decide = functools.partial(self._decide, explore=explore)
        _, action = self.run_step(f"act(explore={explore})", decide, carry, time_step)
        return self.observe(carry, time_step, action)

    def observe(self, carry: tuple[()], time_step: TimeStep, action: Tensor) -> PolicyStep:
        """See ``Agent.observe``; nothing depends on the action."""
        return PolicyStep(action, carry, {})

    def _decide(self, carry: tuple[()], time_step: TimeStep, explore: bool) -> tuple[tuple[()], Tensor]:
        observation = time_step.observation
        action = self.sac.sample(observation)[0] if explore else self.sac.mode(observation)
        return carry, action.float()

    def update(self, batch: ReplayBatch) -> UpdateOutput:
        """See ``Agent.update``."""
        values, _ = self.run_update("update", self.learn, batch)
        return UpdateOutput(values)

    def learn(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], None]:
        """Update the policy and its critics once; see ``Agent.run_update``. Returns what to log."""
        return self.sac.learn(transitions_of(batch)), None

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """See ``Agent.optimizers``."""
        return self.sac.optimizers()
