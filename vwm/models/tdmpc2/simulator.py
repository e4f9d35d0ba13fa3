"""TD-MPC2's world model as a simulator of latents without a decoder, for planning."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.network_simulator import NetworkSimulator, NoSampling
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel


class TDMPC2State(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        latent: float [b, d], of the present time step.
        seed: int64 [b]; unused, since the model is deterministic.
    """

    latent: Tensor
    seed: Tensor


class TDMPC2Simulator(NetworkSimulator):
    """TD-MPC2's world model: see ``Simulator``.

    ``latent`` of a step is the predicted one, float [b, d]. The simulation is deterministic and shows no images. Only
    the last ``num_stacked_frames`` observations of the context are used, and not its actions; where there are fewer,
    the first one is repeated, as at the start of an episode. A simulation terminates where that is predicted to be
    more likely than not.

    Args:
        dynamics: the world model, with its encoder and heads.
        actions: the action space; it must be the model's.
        **rest: see ``NetworkSimulator``.

    Raises:
        ValueError: the action space is not the model's.
    """

    SAMPLING_CLASS: ClassVar[type[Any]] = NoSampling
    dynamics: TDMPC2WorldModel

    def __init__(self, dynamics: TDMPC2WorldModel, actions: ActionSpace, **rest: Any) -> None:
        if (actions.kind, actions.size) != ("continuous", dynamics.action_dims):
            raise ValueError(
                f"{actions.size} {actions.kind} actions named, but the dynamics takes {dynamics.action_dims} "
                "continuous ones"
            )
        observed = (*dynamics.image_size, 3) if dynamics.vector_size is None else (dynamics.vector_size,)
        super().__init__(
            dynamics,
            observation=ObservationSpace.latent(dynamics.latent_size),
            actions=actions,
            context=ObservationSpace.of_shape(observed),
            stochastic=False,
            **rest,
        )

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[TDMPC2State, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, given = context.shape[:2]
        self.check_context_actions(context_actions, batch, given)
        context = context.to(self.device)
        stacked = torch.arange(-self.dynamics.num_stacked_frames, 0, device=self.device).clamp(min=-given) + given
        latent = self.dynamics.encode(context[:, stacked])
        return TDMPC2State(latent, world_seeds(seed, batch, self.device)), context[:, -1]

    def advance(self, state: TDMPC2State, action: Tensor, decode: bool) -> tuple[TDMPC2State, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        action = action.to(state.latent)
        reward = self.dynamics.predict_reward(state.latent, action).float()
        latent = self.dynamics.next_latent(state.latent, action)
        logits = self.dynamics.termination_logits(latent)
        terminated = torch.zeros_like(reward, dtype=torch.bool) if logits is None else logits > 0
        return TDMPC2State(latent, state.seed), StepOutput(
            frame=None, latent=latent, reward=reward, terminated=terminated
        )
