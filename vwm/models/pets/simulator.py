"""A probabilistic ensemble as a simulator, by trajectory sampling (PETS, arXiv 1805.12114, section 5.1).

Legend: m members, b simulations, p particles of each, k size of an observation.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import fold_in, seeded_normal, seeded_uniform, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.models.pets.network import EnsemblePrediction, ProbabilisticEnsemble

NOISE_STREAM, MEMBER_STREAM = 0, 1
"""Streams of random numbers: of predictions, and of the members that make them."""


class TrajectorySampling(NamedTuple):
    """How simulations follow the members.

    Attributes:
        particles: samples of each simulation, which take the same actions: 1, or a multiple of the members, each of
            which then predicts an equal number. Rewards are their mean.
        resample: 1 draws the member of a particle anew in every step (TS1); 0 draws it once (TS-infinity).
    """

    particles: int = 1
    resample: int = 0


class PETSSimulatorState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        observation: float [b, p, k], of each particle.
        running: bool [b, p], False for particles that have terminated, which earn no more rewards.
        position: int64 [b], steps since the reset.
        seed: int64 [b].
    """

    observation: Tensor
    running: Tensor
    position: Tensor
    seed: Tensor


class PETSSimulator(NetworkSimulator):
    """A probabilistic ensemble over vectors: see ``Simulator``.

    The frame of a step, and its ``latent``, is the observation of the first particle. A simulation terminates when all
    its particles have. Of a context, the last observation counts.

    Args:
        dynamics: the ensemble.
        actions: the action space; it must be the ensemble's.
        **rest: see ``NetworkSimulator``.

    Raises:
        ValueError: the action space is not the ensemble's.
    """

    SAMPLING_CLASS: ClassVar[type[Any]] = TrajectorySampling
    dynamics: ProbabilisticEnsemble

    def __init__(self, dynamics: ProbabilisticEnsemble, actions: ActionSpace, **rest: Any) -> None:
        config = dynamics.config
        kind, size = ("discrete", config.num_actions) if config.num_actions else ("continuous", config.action_dims)
        if (actions.kind, actions.size) != (kind, size):
            raise ValueError(f"{actions.size} {actions.kind} actions named, but the dynamics takes {size} {kind} ones")
        super().__init__(
            dynamics, observation=ObservationSpace.of_shape((config.observation_size,)), actions=actions, **rest
        )

    def check_sampling(self, sampling: TrajectorySampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        particles, members = sampling.particles, self.dynamics.members
        if particles != 1 and (particles < 1 or particles % members):
            raise ValueError(f"sampling.particles={particles} must be 1, or a multiple of the {members} members")
        if sampling.resample not in (0, 1):
            raise ValueError(f"sampling.resample={sampling.resample} must be 0 (TS-infinity) or 1 (TS1)")

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[PETSSimulatorState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        self.check_context_actions(context_actions, *context.shape[:2])
        last = context[:, -1].to(self.device)
        seeds = world_seeds(seed, len(last), self.device)
        observation = last[:, None].repeat(1, self.sampling.particles, 1)
        running = torch.ones(observation.shape[:2], dtype=torch.bool, device=self.device)
        return PETSSimulatorState(observation, running, torch.zeros_like(seeds), seeds), last

    def advance(self, state: PETSSimulatorState, action: Tensor, decode: bool) -> tuple[PETSSimulatorState, StepOutput]:
        """See ``NetworkSimulator.advance``."""
        step_seed = fold_in(state.seed, state.position)
        predicted = self._predict(state, action, step_seed if self.sampling.resample else state.seed)
        noise = seeded_normal(fold_in(step_seed, NOISE_STREAM), *predicted.mean.shape[1:])
        drawn = predicted.mean + (predicted.log_variance / 2).exp() * noise
        reward = (drawn[..., -1] * state.running).mean(1)
        running = state.running & (predicted.termination_logit <= 0)
        after = PETSSimulatorState(state.observation + drawn[..., :-1], running, state.position + 1, state.seed)
        shown = self.latent(after)
        return after, StepOutput(shown if decode else None, shown, reward, ~running.any(1))

    def latent(self, state: PETSSimulatorState) -> Tensor:
        """See ``Simulator.latent``."""
        return state.observation[:, 0]

    def _predict(self, state: PETSSimulatorState, action: Tensor, seed: Tensor) -> EnsemblePrediction:
        """Predict each particle by one member, all of which predict equally many; [b, p, ...] instead of [m, b, ...].

        Args:
            state, action: see ``advance``.
            seed: int64 [b], which decides the members.
        """
        batch, particles = state.running.shape
        members, source = self.dynamics.members, fold_in(seed, MEMBER_STREAM)
        taken = action[:, None].expand(-1, particles, *action.shape[1:])
        inputs = self.dynamics.inputs(state.observation, taken)
        worlds = torch.arange(batch, device=self.device)[:, None]
        if particles == 1:
            every = self.dynamics(inputs[:, 0].expand(members, -1, -1))
            member = (seeded_uniform(source, 1) * members).long()
            return EnsemblePrediction(*(part[member, worlds] for part in every))
        order = seeded_uniform(source, particles).argsort(dim=1)  # the first p / m of them follow the first member, ...
        groups = inputs[worlds, order].view(batch, members, -1, inputs.shape[-1]).transpose(0, 1)
        found = self.dynamics(groups.flatten(1, 2))
        restored = order.argsort(dim=1)
        return EnsemblePrediction(*(_join_groups(part, batch)[worlds, restored] for part in found))


def _join_groups(part: Tensor, batch: int) -> Tensor:
    """[m, b p/m, ...] -> [b, p, ...], the particles of the first member first."""
    return part.view(len(part), batch, -1, *part.shape[2:]).transpose(0, 1).flatten(1, 2)
