"""A latent world of PlaNet's and Dreamer's kind behind the simulator interface: it is imagined in by the prior."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.network_simulator import NetworkSimulator, NoSampling
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.rssm.rssm import RSSMState, last_rssm_state
from vwm.models.rssm.world_model import RSSMWorldModel

CONTEXT_STREAM, FRAME_STREAM = 0, 1
"""Streams of random numbers: of the context's states, and of what follows."""


class RSSMSimulatorState(NamedTuple):
    """One world a batch entry.

    Attributes:
        rssm: where it stands.
        position: int64 [b], steps since the reset.
        seed: int64 [b].
    """

    rssm: RSSMState
    position: Tensor
    seed: Tensor


class RSSMSimulator(NetworkSimulator):
    """See ``Simulator``. ``latent`` of a step is the state's features, float [b, d].

    A context is followed by the posterior, whose draws are the same for every seed; without its actions only the last
    observation of a context counts. What a step shows is the decoder's mean. A world ends where its head says that this
    is likelier than not. Rewards that were learned through tanh stay so.

    Args:
        dynamics: the world.
        actions: the action space; it must be the world's.
        **rest: see ``NetworkSimulator``.

    Raises:
        ValueError: the actions are not the world's.
    """

    SAMPLING: ClassVar[type[Any]] = NoSampling
    dynamics: RSSMWorldModel

    def __init__(self, dynamics: RSSMWorldModel, actions: ActionSpace, **rest: Any) -> None:
        kind = "discrete" if dynamics.rssm.num_actions else "continuous"
        if (actions.kind, actions.size) != (kind, dynamics.rssm.action_size):
            raise ValueError(
                f"{actions.size} {actions.kind} actions named, but the dynamics takes {dynamics.rssm.action_size} "
                f"{kind} ones"
            )
        observation = ObservationSpace.of_shape(dynamics.config.observation_shape)
        super().__init__(dynamics, observation=observation, actions=actions, **rest)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[RSSMSimulatorState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, frames = context.shape[:2]
        told = self.check_context_actions(context_actions, batch, frames)
        context = (context[:, -1:] if told is None else context).to(self.device)
        frames = context.shape[1]
        here = self._nothing(batch)[:, None]
        actions = here if told is None else torch.cat((told, here), dim=1)
        is_first = torch.zeros(batch, frames, dtype=torch.bool, device=self.device)
        is_first[:, 0] = True
        rssm = self.dynamics.rssm
        numbers = fold_in(
            torch.full((frames,), CONTEXT_STREAM, device=self.device), torch.arange(frames, device=self.device)
        )
        noise = rssm.stochastic.seeded_noise(numbers).expand(batch, -1, -1)
        states, _ = rssm.observe(self.dynamics.embed(context), actions, is_first, noise=noise)
        state = last_rssm_state(states)
        state = state._replace(action=torch.zeros_like(state.action))
        seeds = world_seeds(seed, batch, self.device)
        return RSSMSimulatorState(state, torch.zeros_like(seeds), seeds), self._show(rssm.features(state))

    @torch.inference_mode()
    def step(
        self, state: RSSMSimulatorState, action: Tensor, decode: bool = True
    ) -> tuple[RSSMSimulatorState, StepOutput]:
        """See ``Simulator.step``."""
        self.check_action(action, len(state.seed))
        world, rssm = self.dynamics, self.dynamics.rssm
        noise = rssm.stochastic.seeded_noise(fold_in(fold_in(state.seed, FRAME_STREAM), state.position))
        after = rssm.imagine_step(state.rssm, action.to(self.device), noise)
        features = rssm.features(after)
        ended = world.predict_continue(features) < world.max_discount / 2
        output = StepOutput(
            self._show(features) if decode else None, features, world.predict_reward(features).float(), ended
        )
        return RSSMSimulatorState(after, state.position + 1, state.seed), output

    def latent(self, state: RSSMSimulatorState) -> Tensor:
        """See ``Simulator.latent``."""
        return self.dynamics.rssm.features(state.rssm)

    def _nothing(self, batch: int) -> Tensor:
        space = self.spec.actions
        return torch.zeros(batch, *space.shape, dtype=space.dtype, device=self.device)

    def _show(self, features: Tensor) -> Tensor:
        observation_model = self.dynamics.observation_model
        return observation_model.postprocess(observation_model.decode(features[:, None]))[:, 0]
