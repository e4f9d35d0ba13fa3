"""What a planner is: it asks a simulator what action sequences lead to, and looks for the one that costs least.

Planners see a world through ``vwm.core.simulator`` alone, without pixels, and plan for a batch of problems at
once. Random numbers are a function of each problem's seed, so a problem is planned as it would be alone.

Legend: b problems, k sequences a problem, n = b k worlds, h steps of the horizon, a dimensions or choices of an action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.checks import check_positive
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State, StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.states import select_worlds, state_batch_size
from vwm.planning.action_sequences import CategoricalActionSequences, GaussianActionSequences, shift_sequences
from vwm.planning.colored_noise import draw_colored_noise


class SequenceRollout(NamedTuple):
    """What sequences led to.

    Attributes:
        costs: float [n, h], what each step cost by the objective.
        terminated: bool [n, h], where the world said that it ended.
        latent: [n, ...], of the last step.
    """

    costs: Tensor
    terminated: Tensor
    latent: Tensor


class PlanningObjective(Protocol):
    """What planning minimises. It sees one step at a time, so that no long rollout has to be kept."""

    def step(self, output: StepOutput, problem: Tensor) -> Tensor:
        """What a step costs: float [n]; ``problem`` int64 [n] says which of the b problems each world belongs to."""
        ...

    def total(self, rollout: SequenceRollout) -> Tensor:
        """What a whole sequence costs: float [n]."""
        ...


class NegativeReturnObjective:
    """The discounted reward, negative, and the value of where the sequence ends; nothing counts after an end.

    Args:
        discount: by which each step's reward counts less than the one before.
        value: what a latent is worth from there on: [n, ...] -> float [n]; None values nothing.
    """

    def __init__(self, discount: float = 1.0, value: Callable[[Tensor], Tensor] | None = None) -> None:
        if not 0 <= discount <= 1:
            raise ValueError(f"discount must lie in 0..1, got {discount}")
        self.discount, self.value = discount, value

    def step(self, output: StepOutput, problem: Tensor) -> Tensor:
        """See ``PlanningObjective.step``."""
        return -output.reward

    def total(self, rollout: SequenceRollout) -> Tensor:
        """See ``PlanningObjective.total``."""
        going = (~rollout.terminated).cumprod(dim=1)
        counts = torch.cat((torch.ones_like(going[:, :1]), going[:, :-1]), dim=1)
        horizon = rollout.costs.shape[1]
        discounts = self.discount ** torch.arange(horizon, device=rollout.costs.device)
        total = (rollout.costs * counts * discounts).sum(dim=1)
        if self.value is not None:
            total = total - self.discount**horizon * self.value(rollout.latent) * going[:, -1]
        return total


class ActionPlan(NamedTuple):
    """What a planner found; a value, as states are: ``vwm.core.states.select_worlds`` picks problems.

    Attributes:
        actions: what to do, float [b, h, a] or int64 [b, h].
        cost: float [b], what the world says that it costs.
        elites: the best sequences, the best first, [b, m, h, ...]; m may be 0.
        distribution: of sequences, at the end of the search.
    """

    actions: Tensor
    cost: Tensor
    elites: Tensor
    distribution: GaussianActionSequences | CategoricalActionSequences


class SamplingPlanner(ABC):
    """Draws sequences, asks the world, and moves the distribution towards those that cost little, some times over.

    Subclasses say by ``weights`` which sequences count for how much.

    Args:
        horizon: steps that a sequence looks ahead, h.
        samples: sequences that are drawn an iteration and problem.
        iterations: how many times.
        momentum: share of the old distribution that stays when it moves.
        std: deviation at the start, in the limits of the actions (continuous ones).
        min_std: the least to which it narrows; for discrete actions the share of every choice that stays random.
        colour: of the noise over time: 0 white, 1 pink, 2 red; see ``vwm.planning.colored_noise``.
        keep: how many of the best sequences stay in the race in the next iteration, and, moved on in time, in the next
            plan (iCEM).
        max_norm: largest size of each dimension of an action, up to 1 (V-JEPA 2-AC's maxnorm).
        pick: ``best`` follows the best sequence seen, ``mean`` the middle of the last distribution, which exploits
            the errors of a learned world less.
        chunk: worlds that step at once, to bound the memory.

    Raises:
        ValueError: a setting makes no sense.
    """

    def __init__(
        self,
        horizon: int,
        samples: int,
        iterations: int,
        momentum: float,
        std: float,
        min_std: float,
        colour: float,
        keep: int,
        max_norm: float,
        pick: Literal["best", "mean"],
        chunk: int,
    ) -> None:
        check_positive(horizon=horizon, samples=samples, iterations=iterations, chunk=chunk)
        for name, share in (("momentum", momentum), ("min_std", min_std)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must lie in 0..1 (1 would never move), got {share}")
        if not (std > 0 and colour >= 0 and 0 < max_norm <= 1):
            raise ValueError(
                f"std must be above 0, colour 0 or more and max_norm in 0..1, got {std}, {colour} and {max_norm}"
            )
        if not 0 <= keep <= samples:
            raise ValueError(f"keep must lie in 0..{samples} (samples), got {keep}")
        if pick not in ("best", "mean"):
            raise ValueError(f"pick must be 'best' or 'mean', got {pick!r}")
        self.horizon, self.samples, self.iterations, self.chunk = horizon, samples, iterations, chunk
        self.momentum, self.std, self.min_std, self.colour = momentum, std, min_std, colour
        self.keep, self.max_norm, self.pick = keep, max_norm, pick

    @property
    def simulator_steps_per_plan(self) -> int:
        """Steps of the world that a decision takes, by problem: what planning costs."""
        return self.horizon * (self.samples * self.iterations + 1 + self.keep)

    @abstractmethod
    def weights(self, costs: Tensor) -> Tensor:
        """How much each sequence counts: float [b, k] -> [b, k], summing to 1 over k."""

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
        """Look for the action sequences that cost least.

        Args:
            simulator: the world; asked without pixels.
            state: of b problems, as the simulator returned it; it is not changed.
            objective: what a sequence costs.
            seed: one, from which every problem gets its own, or int64 [b]. Give another at every decision.
            previous: a plan to start from, moved on to now by ``later``.
            proposals: more sequences to try, [b, m, h, a] or int64 [b, m, h], for example of a policy.

        Raises:
            ValueError: ``previous`` or ``proposals`` do not fit.
        """
        batch, device = state_batch_size(state), tree_leaves(state)[0].device
        seeds = world_seeds(seed, batch, device)
        distribution = self._begin(simulator.spec.actions, batch, device) if previous is None else previous.distribution
        known = [] if previous is None else [previous.elites]
        known += [] if proposals is None else [proposals]
        for tried in known:
            _check_action_sequences(tried, batch, self.horizon, simulator.spec.actions)
        known = [tried for tried in known if tried.shape[1]]  # nothing is kept with keep=0
        pool = torch.cat(known, dim=1) if known else distribution.mode()[:, None][:, :0]
        pool_costs = self._costs(simulator, state, objective, pool) if known else pool.new_zeros(batch, 0).float()
        best, best_costs = [], []
        for iteration in range(self.iterations):
            noise = draw_colored_noise(
                fold_in(seeds, iteration), self.samples, self.horizon, simulator.spec.actions.size, self.colour
            )
            drawn = distribution.draw(noise)
            costs = torch.cat((pool_costs, self._costs(simulator, state, objective, drawn)), dim=1)
            actions = torch.cat((pool, drawn), dim=1)
            distribution = distribution.fit(actions, self.weights(costs), self.momentum, self.min_std)
            actions, costs = _lowest_cost_sequences(actions, costs, max(self.keep, 1))
            best.append(actions[:, :1])
            best_costs.append(costs[:, :1])
            pool, pool_costs = actions[:, : self.keep], costs[:, : self.keep]
        middle = distribution.mode()[:, None]
        found, cost = middle, self._costs(simulator, state, objective, middle)
        if self.pick == "best":
            found, cost = _lowest_cost_sequences(
                torch.cat((*best, middle), dim=1), torch.cat((*best_costs, cost), dim=1), 1
            )
        return ActionPlan(found[:, 0], cost[:, 0], pool, distribution)

    def later(self, plan: ActionPlan, steps: int) -> ActionPlan:
        """A plan as it stands after its first ``steps`` steps were done: what to give as ``previous``."""
        batch, device = len(plan.cost), plan.cost.device
        distribution = plan.distribution
        if isinstance(distribution, GaussianActionSequences):
            start = self._gaussian(batch, distribution.mean.shape[-1], device)
            moved: GaussianActionSequences | CategoricalActionSequences = distribution.later(steps, start)
        else:
            size = distribution.probabilities.shape[-1]
            moved = distribution.later(steps, CategoricalActionSequences.begin(batch, self.horizon, size, device))
        return ActionPlan(
            shift_sequences(plan.actions, steps, 1), plan.cost, shift_sequences(plan.elites, steps, 2), moved
        )

    def _begin(
        self, space: ActionSpace, batch: int, device: torch.device
    ) -> GaussianActionSequences | CategoricalActionSequences:
        if space.kind == "discrete":
            return CategoricalActionSequences.begin(batch, self.horizon, space.size, device)
        return self._gaussian(batch, space.size, device)

    def _gaussian(self, batch: int, size: int, device: torch.device) -> GaussianActionSequences:
        return GaussianActionSequences.begin(batch, self.horizon, size, self.std, self.max_norm, device)

    def _costs(self, simulator: Simulator, state: State, objective: PlanningObjective, actions: Tensor) -> Tensor:
        return sequence_costs(simulator, state, objective, actions, self.chunk)


@torch.no_grad()
def sequence_costs(
    simulator: Simulator, state: State, objective: PlanningObjective, actions: Tensor, chunk: int = 512
) -> Tensor:
    """What action sequences cost in a world.

    Args:
        simulator: the world; asked without pixels.
        state: of b problems.
        objective: what a sequence costs.
        actions: float [b, k, h, a] or int64 [b, k, h].
        chunk: worlds that step at once.

    Returns:
        float [b, k]; what is not a number, or infinite, is the largest finite one.
    """
    batch, samples, horizon = actions.shape[:3]
    problems = torch.arange(batch, device=actions.device).repeat_interleave(samples)
    sequences, totals = actions.flatten(0, 1), []
    for part in torch.arange(len(problems), device=actions.device).split(chunk):
        problem, chosen = problems[part], sequences[part]
        worlds, costs, ends = select_worlds(state, problem), [], []
        for t in range(horizon):
            worlds, output = simulator.step(worlds, chosen[:, t], decode=False)
            costs.append(objective.step(output, problem))
            ends.append(output.terminated)
        totals.append(objective.total(SequenceRollout(torch.stack(costs, 1), torch.stack(ends, 1), output.latent)))
    most = torch.finfo(totals[0].dtype).max
    return torch.cat(totals).view(batch, samples).nan_to_num(nan=most, posinf=most, neginf=-most)


def _lowest_cost_sequences(actions: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` cheapest sequences of every problem, the cheapest first; of equals the first."""
    costs, places = costs.sort(dim=1, stable=True)
    places = places[:, :count]
    rows = torch.arange(len(actions), device=actions.device)[:, None]
    return actions[rows, places], costs[:, :count]


def _check_action_sequences(sequences: Tensor, batch: int, horizon: int, space: ActionSpace) -> None:
    discrete = space.kind == "discrete"
    wanted = [batch, horizon] if discrete else [batch, horizon, space.size]
    shape = list(sequences.shape)
    if shape[:1] + shape[2:] != wanted or len(shape) < 3 or sequences.is_floating_point() == discrete:
        kind = "integers" if discrete else "floats"
        raise ValueError(
            f"sequences of a previous plan and proposals must be {kind} [{batch}, m, {', '.join(map(str, wanted[1:]))}]"
            f" (problems, sequences, horizon...), got {sequences.dtype} {shape}"
        )
