"""Tree search over a learned model or a simulator: MuZero's and Gumbel MuZero's search share this loop.

A search expands any ``TreeSearchModel``: it predicts the outcome of an action and, for each state, a policy (the prior)
and a value. Each simulation follows the tree from the root to an action that has not been tried, evaluates that step
with one call of the model for all trees of the batch, and backs its value up to the root. Simulations may continue
after a termination, but the values there are multiplied by zero.

Legend: b batch, a actions, m selected nodes (rows of ``SearchTree``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator
from vwm.core.states import NestedState, state_batch_size
from vwm.planning.search_tree import Floats, Ints, SearchTree
from vwm.planning.tree_search_model import SimulatorTreeModel, TreeSearchModel


class TreeSearchResult(NamedTuple):
    """The result of a search.

    Attributes:
        action: int64 [b], the selected actions; of composite ones see ``ActionSpace.enumerated``.
        policy: float32 [b, a], the improved policy, a target for learning.
        value: float32 [b], of the root.
        visits: int64 [b, a], visit counts of the root's actions; they sum to ``simulations``.
    """

    action: Tensor
    policy: Tensor
    value: Tensor
    visits: Tensor


class TreeSearch(ABC):
    """The loop of a search; subclasses select the actions of simulations and the final action.

    Args:
        simulations: model steps per decision and problem.
        min_value_range: values are normalized by their range, but at least by this number; otherwise the rounding
            errors of an untrained model would determine the search (EfficientZero uses 0.01; mctx has no minimum).

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, simulations: int, min_value_range: float) -> None:
        if simulations < 1 or not min_value_range > 0:
            raise ValueError(
                f"simulations must be 1 or more and min_value_range above 0, got {simulations} and {min_value_range}"
            )
        self.simulations = simulations
        self.min_value_range = min_value_range

    @abstractmethod
    def _root_noise(self, tree: SearchTree, seeds: Tensor, temperature: float) -> Floats:
        """Draw the noise of the roots, [b, a], once per search; it may change their prior."""

    @abstractmethod
    def _select_actions(self, tree: SearchTree, rows: Ints) -> Ints:
        """Select the next actions [m] of nodes."""

    def _select_root_actions(self, tree: SearchTree, noise: Floats, simulation: int) -> Ints:
        """Select the next actions [b] of the roots; after the first simulation, its backup has selected them."""
        return tree.next_action[tree.roots] if simulation else self._select_actions(tree, tree.roots)

    @abstractmethod
    def _decide(
        self, tree: SearchTree, noise: Floats, seeds: Tensor, temperature: float
    ) -> tuple[Ints, Floats, Floats]:
        """Return the final actions [b], the improved policy [b, a], and the values of the roots [b]."""

    @torch.no_grad()
    def search(
        self,
        model: TreeSearchModel,
        state: NestedState,
        discount: float = 0.997,
        seed: int | Tensor = 0,
        temperature: float = 0.0,
    ) -> TreeSearchResult:
        """Search from every state of a batch.

        Args:
            model: predicts outcomes, policies and values.
            state: states of b problems; not modified.
            discount: per step.
            seed: one seed, from which every problem derives its own, or int64 [b]. Pass a new one at every decision.
            temperature: 0 selects the best action without randomness; above 0 explores as in training.

        Raises:
            ValueError: discount or temperature is out of range.
        """
        if not (0 <= discount <= 1 and temperature >= 0):
            raise ValueError(f"discount must lie in 0..1 and temperature be 0 or more, got {discount}, {temperature}")
        seeds = world_seeds(seed, state_batch_size(state))
        tree = SearchTree(model.predict(state), state, self.simulations)
        noise = self._root_noise(tree, fold_in(seeds, 1), temperature)
        for simulation in range(self.simulations):
            tree.next_action[tree.roots] = self._select_root_actions(tree, noise, simulation)
            path, active_at = tree.select_leaves()
            new_rows = tree.expand(model, path[-1], simulation + 1, discount)
            changed_rows = tree.backup(path, active_at, new_rows)
            tree.next_action[changed_rows] = self._select_actions(tree, changed_rows)
        action, policy, value = self._decide(tree, noise, fold_in(seeds, 2), temperature)
        return TreeSearchResult(
            action=torch.from_numpy(action).to(tree.device),
            policy=torch.from_numpy(policy).to(tree.device).float(),
            value=torch.from_numpy(value).to(tree.device).float(),
            visits=torch.from_numpy(tree.visits[tree.roots]).to(tree.device),
        )

    def plan(
        self,
        simulator: Simulator,
        state: NestedState,
        discount: float = 0.997,
        value: Callable[[NestedState], Tensor] | None = None,
        seed: int | Tensor = 0,
    ) -> TreeSearchResult:
        """Search in a simulator by its rewards; see ``search`` and ``SimulatorTreeModel``."""
        return self.search(SimulatorTreeModel(simulator, value), state, discount, seed)
