"""MuZero's model behind the simulator interface: a world that foretells rewards and values, and shows nothing."""

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
    """One world a batch entry.

    Attributes:
        world: see ``MuZeroLatentState``.
        seed: int64 [b]; nothing is drawn from it.
    """

    world: MuZeroLatentState
    seed: Tensor

    @property
    def latent(self) -> Tensor:
        """Where the worlds stand."""
        return self.world.latent


class MuZeroSimulator(NetworkSimulator):
    """See ``Simulator``. ``latent`` of a step is the network's, float [b, d] or [b, d, h, w].

    The world is deterministic and has no pictures. It never ends by itself: what it learned of an end is that nothing
    is earned after it. The actions of a context say nothing to it.

    Args:
        dynamics: the network.
        actions: the action space; it must be the network's.
        **rest: see ``NetworkSimulator``; ``context_frames`` is what the network sees at once.

    Raises:
        ValueError: the actions do not fit.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("dynamics",)
    SAMPLING = NoSampling

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
            context=ObservationSpace.of_shape(dynamics.observation),
            stochastic=False,
            **{**rest, "context_frames": dynamics.frames},
        )

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[MuZeroSimulatorState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        self.check_context_actions(context_actions, *context.shape[:2])
        context = context.to(self.device)
        places = torch.arange(-self.spec.context_frames, 0, device=self.device) + context.shape[1]
        seen = context[:, places.clamp(min=0)]  # of a short context the first frame stands for those before it
        state = MuZeroSimulatorState(self.dynamics.represent(seen), world_seeds(seed, len(context), self.device))
        return state, context[:, -1]

    @torch.inference_mode()
    def step(
        self, state: MuZeroSimulatorState, action: Tensor, decode: bool = True
    ) -> tuple[MuZeroSimulatorState, StepOutput]:
        """See ``Simulator.step``."""
        self.check_action(action, len(state.seed))
        world, reward, _ = self.dynamics.step(state.world, action.to(self.device))
        ended = torch.zeros_like(reward, dtype=torch.bool)
        return state._replace(world=world), StepOutput(None, world.latent, reward.float(), ended)

    @torch.inference_mode()
    def value(self, state: MuZeroSimulatorState) -> Tensor:
        """What states are worth by the network, float [b]: for planners."""
        return self.dynamics.bins.mean(self.dynamics.predict(state.latent).value)
