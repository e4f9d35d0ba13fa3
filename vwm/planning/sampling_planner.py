"""Sampling planners: draw action sequences, evaluate them in a simulator, and return the one with the lowest cost.

Planners use the interface of ``vwm.core.simulator`` alone, do not decode frames, and plan for a batch of problems at
once. Random numbers are a function of each problem's seed, so that the plan of a problem does not depend on its batch.

Legend: b problems, k sequences per problem, n = b k worlds, h steps of the horizon, a dimensions of an action or number
of discrete actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.checks import check_positive
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State, StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.states import select_worlds, state_batch_size
from vwm.planning.action_sequences import (
    ActionSequences,
    CategoricalActionSequences,
    GaussianActionSequences,
    shift_sequences,
)
from vwm.planning.colored_noise import draw_colored_noise


class SequenceRollout(NamedTuple):
    """The outcome of action sequences in a world.

    Attributes:
        costs: float [n, h], the objective's cost of each step.
        terminated: bool [n, h], where the world ended the episode.
        latent: [n, ...] after the last step.
    """

    costs: Tensor
    terminated: Tensor
    latent: Tensor


class PlanningObjective(Protocol):
    """A cost to minimize. It is computed step by step, so that long rollouts need not be kept."""

    def step_cost(self, output: StepOutput, problem_index: Tensor) -> Tensor:
        """Return the cost of a step, float [n]; ``problem_index`` int64 [n] gives the problem of each world."""
        ...

    def sequence_cost(self, rollout: SequenceRollout) -> Tensor:
        """Return the cost of whole sequences, float [n]."""
        ...


class NegativeReturnObjective:
    """The negative discounted return plus a value of the last latent; nothing counts after a termination.

    Args:
        discount: per step.
        terminal_value: value of latents [n, ...], float [n]; None takes 0.

    Raises:
        ValueError: the discount lies outside 0..1.
    """

    def __init__(self, discount: float = 1.0, terminal_value: Callable[[Tensor], Tensor] | None = None) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie in 0..1, got {discount}")
        self.discount = discount
        self.terminal_value = terminal_value

    def step_cost(self, output: StepOutput, problem_index: Tensor) -> Tensor:
        """Return the negative reward; see ``PlanningObjective.step_cost``."""
        return -output.reward

    def sequence_cost(self, rollout: SequenceRollout) -> Tensor:
        """Sum the discounted costs up to a termination; see ``PlanningObjective.sequence_cost``."""
        running = (~rollout.terminated).cumprod(dim=1)
        counts = torch.cat((torch.ones_like(running[:, :1]), running[:, :-1]), dim=1)
        horizon = rollout.costs.shape[1]
        discounts = self.discount ** torch.arange(horizon, device=rollout.costs.device)
        total = (rollout.costs * counts * discounts).sum(dim=1)
        if self.terminal_value is not None:
            total = total - self.discount**horizon * self.terminal_value(rollout.latent) * running[:, -1]
        return total


class ActionPlan(NamedTuple):
    """The result of a planner; a value, as states are: ``vwm.core.states.select_worlds`` selects problems.

    Attributes:
        actions: the plan, float [b, h, a] or int64 [b, h].
        cost: float [b], its cost in the world.
        elites: the best sequences, best first, [b, m, h, ...]; m may be 0.
        distribution: over sequences, at the end of the search.
    """

    actions: Tensor
    cost: Tensor
    elites: Tensor
    distribution: ActionSequences


@dataclass(frozen=True, kw_only=True)
class SamplingPlanner(ABC):
    """Draw sequences, evaluate them in a world, move the distribution toward the best ones, and repeat.

    Subclasses define ``sequence_weights``.

    Attributes:
        horizon: steps of a sequence, h.
        samples: sequences drawn per iteration and problem.
        iterations: number of times that the distribution moves.
        momentum: share of the old distribution that is kept when it moves.
        init_std: initial standard deviation of continuous actions, as a share of ``action_bound``.
        min_std: smallest standard deviation, as a share of ``action_bound``; for discrete actions the probability that
            all actions share.
        noise_exponent: of the noise over time: 0 white, 1 pink, 2 red; see ``vwm.planning.colored_noise``.
        keep_elites: number of best sequences that compete again in the next iteration and, shifted, in the next plan
            (iCEM).
        action_bound: largest absolute value of each dimension of an action, up to 1 (V-JEPA 2-AC's maxnorm).
        selection: ``best`` returns the best sequence of all, ``mean`` the mode of the last distribution, which
            exploits the errors of a learned world less.
        max_batch_size: worlds that step at once, to limit memory.

    Raises:
        ValueError: a value is out of range.
    """

    horizon: int = 24
    samples: int = 64
    iterations: int = 3
    momentum: float = 0.1
    init_std: float = 1.5
    min_std: float = 0.05
    noise_exponent: float = 2.0
    keep_elites: int = 4
    action_bound: float = 1.0
    selection: Literal["best", "mean"] = "best"
    max_batch_size: int = 512

    def __post_init__(self) -> None:
        check_positive(
            horizon=self.horizon,
            samples=self.samples,
            iterations=self.iterations,
            max_batch_size=self.max_batch_size,
        )
        for name, share in (("momentum", self.momentum), ("min_std", self.min_std)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        if not (self.init_std > 0 and self.noise_exponent >= 0 and 0 < self.action_bound <= 1):
            raise ValueError(
                "init_std must be above 0, noise_exponent at least 0 and action_bound in 0..1, got "
                f"{self.init_std}, {self.noise_exponent} and {self.action_bound}"
            )
        if not 0 <= self.keep_elites <= self.samples:
            raise ValueError(f"keep_elites must lie in 0..{self.samples} (samples), got {self.keep_elites}")
        if self.selection not in ("best", "mean"):
            raise ValueError(f"selection must be 'best' or 'mean', got {self.selection!r}")

    @property
    def simulator_steps_per_plan(self) -> int:
        """Number of simulator steps per decision and problem."""
        return self.horizon * (self.samples * self.iterations + 1 + self.keep_elites)

    @abstractmethod
    def sequence_weights(self, costs: Tensor) -> Tensor:
        """Map costs float [b, k] to the weights of sequences in the fit, [b, k], summing to 1 over k."""

    @torch.no_grad()
    def plan(
        self,
        simulator: Simulator,
        state: State,
        objective: PlanningObjective,
        seed: int | Tensor = 0,
        previous: ActionPlan | None = None,
        proposals: Tensor | None = None,
    ) -> ActionPlan:
        """Search for the action sequences with the lowest cost.

        Args:
            simulator: the world; frames are not decoded.
            state: of b problems, as the simulator returned it; it is not changed.
            objective: the cost of a sequence.
            seed: one, from which every problem derives its own, or int64 [b]. Give another at every decision.
            previous: a plan to start from, shifted to the present by ``shift_plan``.
            proposals: more sequences to evaluate, [b, m, h, a] or int64 [b, m, h], for example of a policy; of
                ``ActionSpace.flat``.

        Raises:
            ValueError: ``previous`` or ``proposals`` have the wrong shape or type.
        """
        batch, device = state_batch_size(state), tree_leaves(state)[0].device
        seeds = world_seeds(seed, batch, device)
        actions = simulator.spec.actions.flat
        initial = self._initial_distribution(actions, batch, device)
        distribution = initial if previous is None else previous.distribution
        pool = self._known_sequences(distribution, actions, previous, proposals)
        pool_costs = pool.new_zeros(batch, 0).float()
        if pool.shape[1]:
            pool_costs = self._costs(simulator, state, objective, pool)
        best, best_costs = [], []
        for iteration in range(self.iterations):
            noise = draw_colored_noise(
                fold_in(seeds, iteration), self.samples, self.horizon, actions.size, self.noise_exponent
            )
            drawn = distribution.draw(noise)
            costs = torch.cat((pool_costs, self._costs(simulator, state, objective, drawn)), dim=1)
            sequences = torch.cat((pool, drawn), dim=1)
            distribution = distribution.fit(sequences, self.sequence_weights(costs), self.momentum, self.min_std)
            sequences, costs = _lowest_cost_sequences(sequences, costs, max(self.keep_elites, 1))
            best.append(sequences[:, :1])
            best_costs.append(costs[:, :1])
            pool, pool_costs = sequences[:, : self.keep_elites], costs[:, : self.keep_elites]
        mode = distribution.mode()[:, None]
        found, cost = mode, self._costs(simulator, state, objective, mode)
        if self.selection == "best":
            found, cost = _lowest_cost_sequences(
                torch.cat((*best, mode), dim=1), torch.cat((*best_costs, cost), dim=1), 1
            )
        taken = simulator.spec.actions.from_flat(found[:, 0])
        return ActionPlan(actions=taken, cost=cost[:, 0], elites=pool, distribution=distribution)

    def shift_plan(self, plan: ActionPlan, steps: int) -> ActionPlan:
        """Shift a plan in time after its first ``steps`` steps were taken, to be given as ``previous``."""
        batch, device = len(plan.cost), plan.cost.device
        distribution: ActionSequences = plan.distribution
        if isinstance(distribution, GaussianActionSequences):
            distribution = distribution.shift(steps, self._gaussian(batch, distribution.mean.shape[-1], device))
        elif isinstance(distribution, CategoricalActionSequences):
            size = distribution.probabilities.shape[-1]
            initial = CategoricalActionSequences.initial(batch, self.horizon, size, device)
            distribution = distribution.shift(steps, initial)
        return ActionPlan(
            actions=shift_sequences(plan.actions, steps, 1),
            cost=plan.cost,
            elites=shift_sequences(plan.elites, steps, 2),
            distribution=distribution,
        )

    def _known_sequences(
        self,
        distribution: ActionSequences,
        space: ActionSpace,
        previous: ActionPlan | None,
        proposals: Tensor | None,
    ) -> Tensor:
        """Return the previous elites and the proposals, [b, m, h, ...]; m may be 0."""
        mode = distribution.mode()[:, None]
        known = [] if previous is None else [previous.elites]
        known += [] if proposals is None else [proposals]
        for sequences in known:
            _check_action_sequences(sequences, len(mode), self.horizon, space)
        known = [sequences for sequences in known if sequences.shape[1]]
        return torch.cat(known, dim=1) if known else mode[:, :0]

    def _initial_distribution(self, space: ActionSpace, batch: int, device: torch.device) -> ActionSequences:
        if space.kind == "discrete":
            return CategoricalActionSequences.initial(batch, self.horizon, space.size, device)
        return self._gaussian(batch, space.size, device)

    def _gaussian(self, batch: int, size: int, device: torch.device) -> GaussianActionSequences:
        return GaussianActionSequences.initial(
            batch=batch,
            horizon=self.horizon,
            size=size,
            std=self.init_std,
            bound=self.action_bound,
            device=device,
        )

    def _costs(self, simulator: Simulator, state: State, objective: PlanningObjective, actions: Tensor) -> Tensor:
        return sequence_costs(simulator, state, objective, actions, self.max_batch_size)


@torch.no_grad()
def sequence_costs(
    simulator: Simulator, state: State, objective: PlanningObjective, actions: Tensor, max_batch_size: int = 512
) -> Tensor:
    """Evaluate action sequences in a world.

    Args:
        simulator: the world; frames are not decoded.
        state: of b problems.
        objective: the cost of a sequence.
        actions: float [b, k, h, a] or int64 [b, k, h], of ``ActionSpace.flat``.
        max_batch_size: worlds that step at once.

    Returns:
        float [b, k]; NaN and infinite costs become the largest finite number.
    """
    batch, samples, horizon = actions.shape[:3]
    problems = torch.arange(batch, device=actions.device).repeat_interleave(samples)
    sequences, totals = actions.flatten(0, 1), []
    pads = isinstance(simulator, NetworkSimulator) and simulator.captured_steps is not None
    for part in _batches(len(problems), max_batch_size, pads, actions.device):
        problem_index, part_actions = problems[part], sequences[part]
        worlds, costs, terminated = select_worlds(state, problem_index), [], []
        for t in range(horizon):
            taken = simulator.spec.actions.from_flat(part_actions[:, t])
            worlds, output = simulator.step(worlds, taken, decode=False)
            costs.append(objective.step_cost(output, problem_index))
            terminated.append(output.terminated)
        rollout = SequenceRollout(torch.stack(costs, 1), torch.stack(terminated, 1), output.latent)
        totals.append(objective.sequence_cost(rollout))
    most = torch.finfo(totals[0].dtype).max
    found = torch.cat(totals)[: len(problems)]
    return found.view(batch, samples).nan_to_num(nan=most, posinf=most, neginf=-most)


def _batches(count: int, largest: int, pads: bool, device: torch.device) -> tuple[Tensor, ...]:
    """Return the numbers 0..count-1 in batches of at most ``largest``.

    With ``pads``, the last number is repeated until the last batch's size is a power of two: as episodes end, there are
    fewer problems, and steps are captured for few sizes only.
    """
    batches = list(torch.arange(count, device=device).split(largest))
    if pads and batches:
        size = min(largest, 1 << (len(batches[-1]) - 1).bit_length())
        batches[-1] = torch.cat((batches[-1], batches[-1][-1:].expand(size - len(batches[-1]))))
    return tuple(batches)


def _lowest_cost_sequences(actions: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Select the ``count`` sequences of lowest cost per problem, lowest first; the first of equal ones."""
    costs, indices = costs.sort(dim=1, stable=True)
    indices = indices[:, :count]
    rows = torch.arange(len(actions), device=actions.device)[:, None]
    return actions[rows, indices], costs[:, :count]


def _check_action_sequences(sequences: Tensor, batch: int, horizon: int, space: ActionSpace) -> None:
    discrete = space.kind == "discrete"
    expected = [batch, horizon] if discrete else [batch, horizon, space.size]
    shape = list(sequences.shape)
    if shape[:1] + shape[2:] != expected or len(shape) < 3 or sequences.is_floating_point() == discrete:
        kind = "integers" if discrete else "floats"
        raise ValueError(
            f"sequences of a previous plan and proposals must be {kind} [{batch}, m, "
            f"{', '.join(map(str, expected[1:]))}] (problems, sequences, horizon...), got {sequences.dtype} {shape}"
        )
