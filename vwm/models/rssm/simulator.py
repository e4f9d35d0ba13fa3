"""A recurrent state-space model (PlaNet, Dreamer) as a simulator: steps follow the prior."""

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
"""Streams of random numbers: of the context's states, and of the steps after it."""


class RSSMSimulatorState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        rssm: the model's state.
        position: int64 [b], steps since the reset.
        seed: int64 [b].
    """

    rssm: RSSMState
    position: Tensor
    seed: Tensor


class RSSMSimulator(NetworkSimulator):
    """A world model of PlaNet's and Dreamer's kind: see ``Simulator``.

    ``latent`` of a step is the features of its state, float [b, d]. A context is observed by the posterior, whose
    samples are the same for every seed; without its actions only the last observation is used. A step shows the
    decoder's mean. A simulation terminates where that is predicted to be more likely than not. Rewards that were
    learned through tanh remain transformed.

    Args:
        dynamics: the world model.
        actions: the action space; it must be the world model's.
        **rest: see ``NetworkSimulator``.

    Raises:
        ValueError: the action space is not the world model's.
    """

    SAMPLING_CLASS: ClassVar[type[Any]] = NoSampling
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
        context_actions = self.check_context_actions(context_actions, batch, frames)
        context = (context[:, -1:] if context_actions is None else context).to(self.device)
        frames = context.shape[1]
        last = self._zero_action(batch)[:, None]
        actions = last if context_actions is None else torch.cat((context_actions, last), dim=1)
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
        return RSSMSimulatorState(state, torch.zeros_like(seeds), seeds), self._decode_observation(rssm.features(state))

    def advance(self, state: RSSMSimulatorState, action: Tensor, decode: bool) -> tuple[RSSMSimulatorState, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        world, rssm = self.dynamics, self.dynamics.rssm
        noise = rssm.stochastic.seeded_noise(fold_in(fold_in(state.seed, FRAME_STREAM), state.position))
        after = rssm.imagine_step(state.rssm, action, noise)
        features = rssm.features(after)
        frame = self._decode_observation(features) if decode else None
        reward = world.predict_reward(features).float()
        terminated = world.predict_continue(features) < world.max_discount / 2
        output = StepOutput(frame=frame, latent=features, reward=reward, terminated=terminated)
        return RSSMSimulatorState(after, state.position + 1, state.seed), output

    def latent(self, state: RSSMSimulatorState) -> Tensor:
        """See ``Simulator.latent``."""
        return self.dynamics.rssm.features(state.rssm)

    def _zero_action(self, batch: int) -> Tensor:
        space = self.spec.actions
        return torch.zeros(batch, *space.shape, dtype=space.dtype, device=self.device)

    def _decode_observation(self, features: Tensor) -> Tensor:
        observation_model = self.dynamics.observation_model
        return observation_model.postprocess(observation_model.decode(features[:, None]))[:, 0]
