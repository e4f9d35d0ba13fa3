"""Gumbel MuZero's search: Danihelka et al., Policy improvement by planning with Gumbel, ICLR 2022."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from vwm.core.seeds import seeded_uniform
from vwm.planning.search_tree import Array, TreeArrays, softmax
from vwm.planning.tree_search import TreeKind, TreeSearch

SMALLEST_FLOAT = np.finfo(np.float64).tiny
"""Lower bound of divisors."""


class GumbelMuZeroSearch(TreeSearch):
    """Gumbel MuZero's search, which improves the policy with few simulations.

    At the roots, actions are drawn without replacement by Gumbel noise, and sequential halving reduces their number;
    below the roots, visits follow the improved policy. Untried actions have the mixed value (appendix D). The value of
    a root is that of the improved policy: the mean over the simulations would be too low, because sequential halving
    also spends simulations on bad actions. Below the roots the search relies on the model's policy and value; in a
    world without these, PUCT explores more widely.

    Args:
        simulations, min_value_range, tree: see ``TreeSearch``.
        max_considered_actions: number of actions that sequential halving starts with, at most.
        value_scale, max_visit_offset: normalized values are multiplied by value_scale (max_visit_offset + the largest
            visit count) before they are added to the logits.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        simulations: int = 50,
        max_considered_actions: int = 16,
        value_scale: float = 0.1,
        max_visit_offset: float = 50.0,
        min_value_range: float = 0.01,
        tree: TreeKind = "auto",
    ) -> None:
        super().__init__(simulations, min_value_range, tree)
        if max_considered_actions < 1 or not (value_scale > 0 and max_visit_offset >= 0):
            raise ValueError(
                "max_considered_actions must be 1 or more, value_scale above 0 and max_visit_offset 0 or more, got "
                f"{max_considered_actions}, {value_scale} and {max_visit_offset}"
            )
        self.max_considered_actions = max_considered_actions
        self.value_scale = value_scale
        self.max_visit_offset = max_visit_offset

    def _root_noise(self, tree: TreeArrays, seeds: Tensor, temperature: float) -> Array:
        """Draw Gumbel noise times the temperature, which samples softmax((logits + values) / temperature)."""
        uniform = seeded_uniform(seeds, tree.prior.shape[1]).double().numpy()
        return tree.to_array(temperature * -np.log(-np.log(uniform)))

    def _completed_q_values(self, tree: TreeArrays, rows: Array) -> Array:
        """Return the values of all actions, [m, a]; untried actions have the mixed value."""
        xp, visits, prior, q = tree.xp, tree.visits[rows], tree.prior[rows], tree.q[rows]
        tried_prior = xp.where(visits > 0, xp.clip(prior, SMALLEST_FLOAT, None), 0)
        mean_q = (tried_prior * q).sum(1) / xp.clip(tried_prior.sum(1), SMALLEST_FLOAT, None)
        total_visits = visits.sum(1)
        mixed_value = (tree.predicted_value[rows] + total_visits * mean_q) / (total_visits + 1)
        return xp.where(visits > 0, q, mixed_value[:, None])

    def _improved_logits(self, tree: TreeArrays, rows: Array, q: Array) -> Array:
        """Return the logits of the improved policy, [m, a], from completed values."""
        xp = tree.xp
        low, high = xp.amin(q, axis=1, keepdims=True), xp.amax(q, axis=1, keepdims=True)
        most_visits = xp.amax(tree.visits[rows], axis=1, keepdims=True)
        weight = self.value_scale * (self.max_visit_offset + most_visits)
        return tree.logits[rows] + weight * (q - low) / xp.clip(high - low, self.min_value_range, None)

    def _select_actions(self, tree: TreeArrays, rows: Array) -> Array:
        visits = tree.visits[rows]
        policy = softmax(tree, self._improved_logits(tree, rows, self._completed_q_values(tree, rows)))
        return (policy - visits / (1 + visits.sum(axis=1, keepdims=True))).argmax(1)

    def _select_root_actions(self, tree: TreeArrays, noise: Array, simulation: int) -> Array:
        num_considered = min(self.max_considered_actions, noise.shape[1])
        visits = sequential_halving(num_considered, tree.simulations)[simulation]
        return self._best_root_actions(tree, noise, visits)

    def _best_root_actions(self, tree: TreeArrays, noise: Array, visits: Array | int) -> Array:
        """Return the best of the roots' actions with the given visit count, [b, 1] or one for all."""
        scores = noise + self._improved_logits(tree, tree.roots, self._completed_q_values(tree, tree.roots))
        return tree.xp.where(tree.visits[tree.roots] == visits, scores, -np.inf).argmax(1)

    def _decide(self, tree: TreeArrays, noise: Array, seeds: Tensor, temperature: float) -> tuple[Array, Array, Array]:
        most_visits = tree.xp.amax(tree.visits[tree.roots], axis=1, keepdims=True)
        action = self._best_root_actions(tree, noise, most_visits)
        q = self._completed_q_values(tree, tree.roots)
        policy = softmax(tree, self._improved_logits(tree, tree.roots, q))
        return action, policy, (policy * q).sum(1)


def sequential_halving(num_considered: int, simulations: int) -> list[int]:
    """Compute the schedule of sequential halving: for each simulation, the visit count of the action to try next.

    The simulations are divided evenly among the rounds, and in each round among the remaining actions, of which the
    better half stays for the next round, at least two.

    Args:
        num_considered: number of actions at the start.
        simulations: total number.

    Returns:
        Visit counts, one per simulation.
    """
    rounds = max(1, math.ceil(math.log2(num_considered)))
    remaining = num_considered
    visits = 0
    schedule: list[int] = []
    while len(schedule) < simulations:
        repeats = max(1, simulations // (rounds * remaining))
        schedule += [visits + i for i in range(repeats) for _ in range(remaining)]
        visits += repeats
        remaining = max(2, remaining // 2) if num_considered > 1 else 1
    return schedule[:simulations]
