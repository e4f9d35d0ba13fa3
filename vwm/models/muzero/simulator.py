"""MuZero's model as a simulator, which predicts rewards and values but no observations."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.network_simulator import NetworkSimulator, NoSampling
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.muzero.network import MuZeroLatentState, MuZeroNetwork


class MuZeroSimulatorState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        network_state: see ``MuZeroLatentState``.
        seed: int64 [b]; unused, since the model is deterministic.
    """

    network_state: MuZeroLatentState
    seed: Tensor

    @property
    def latent(self) -> Tensor:
        """See ``Simulator.latent``."""
        return self.network_state.latent


class MuZeroSimulator(NetworkSimulator):
    """MuZero's network: see ``Simulator``.

    ``latent`` of a step is the network's, float [b, d] or [b, d, h, w]. The simulation is deterministic and has no
    frames. It never terminates: in training, the rewards after a termination are zero. The actions of a context are
    not used.

    Args:
        dynamics: the network.
        actions: the action space; it must be the network's.
        **rest: see ``NetworkSimulator``; ``context_frames`` is the number of observations that the network takes.

    Raises:
        ValueError: the action space is not the network's.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("dynamics",)
    SAMPLING_CLASS = NoSampling

    def __init__(self, dynamics: MuZeroNetwork, actions: ActionSpace, **rest: Any) -> None:
        if (actions.kind, actions.size) != ("discrete", dynamics.num_actions):
            raise ValueError(
                f"{actions.size} {actions.kind} actions named, but the dynamics takes {dynamics.num_actions} discrete "
                "ones"
            )
        super().__init__(
            dynamics,
            observation=ObservationSpace.latent(*dynamics.latent_shape),
            actions=actions,
            context=ObservationSpace.of_shape(dynamics.observation_shape),
            stochastic=False,
            **{**rest, "context_frames": dynamics.num_stacked_frames},
        )

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[MuZeroSimulatorState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        self.check_context_actions(context_actions, *context.shape[:2])
        context = context.to(self.device)
        indices = torch.arange(-self.spec.context_frames, 0, device=self.device) + context.shape[1]
        observations = context[:, indices.clamp(min=0)]  # a short context begins with copies of its first frame
        network_state = self.dynamics.represent(observations)
        seeds = world_seeds(seed, len(context), self.device)
        return MuZeroSimulatorState(network_state, seeds), context[:, -1]

    def advance(
        self, state: MuZeroSimulatorState, action: Tensor, decode: bool
    ) -> tuple[MuZeroSimulatorState, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        network_state, reward, _ = self.dynamics.step(state.network_state, action)
        terminated = torch.zeros_like(reward, dtype=torch.bool)
        output = StepOutput(frame=None, latent=network_state.latent, reward=reward.float(), terminated=terminated)
        return state._replace(network_state=network_state), output

    @torch.inference_mode()
    def value(self, state: MuZeroSimulatorState) -> Tensor:
        """Return the predicted values of states, float [b], for planners."""
        return self.dynamics.value_support.mean(self.dynamics.predict(state.latent).value_logits)
