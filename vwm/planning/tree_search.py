"""Tree search over a learned model or a simulator: MuZero's and Gumbel MuZero's search share this loop.

A search expands any ``TreeSearchModel``: it predicts the outcome of an action and, for each state, a policy (the prior)
and a value. Each simulation follows the tree from the root to an action that has not been tried, evaluates that step
with one call of the model for all trees of the batch, and backs its value up to the root. Simulations may continue
after a termination, but the values there are multiplied by zero.

The trees are arrays. The rules of a search are written once for both kinds of them: NumPy's on the host
(``SearchTree``), and torch's on a device (``DeviceSearchTree``).

Legend: b batch, a actions, m selected nodes (rows of a tree).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator
from vwm.core.states import NestedState, state_batch_size
from vwm.planning.device_search_tree import DeviceSearchTree
from vwm.planning.search_tree import Array, SearchTree, TreeArrays
from vwm.planning.tree_search_model import SimulatorTreeModel, TreeSearchModel

TreeKind = Literal["auto", "host", "device"]


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
        tree: where the numbers of the trees are: on the ``host``, in NumPy, which is faster for states on a CPU; on the
            ``device`` of the states, which reads nothing back from a GPU; ``auto`` takes the device where it is a GPU.
            Results are equal up to rounding (float64).

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, simulations: int, min_value_range: float, tree: TreeKind = "auto") -> None:
        if simulations < 1 or not min_value_range > 0:
            raise ValueError(
                f"simulations must be 1 or more and min_value_range above 0, got {simulations} and {min_value_range}"
            )
        self.simulations = simulations
        self.min_value_range = min_value_range
        self.tree = tree

    @abstractmethod
    def _root_noise(self, tree: TreeArrays, seeds: Tensor, temperature: float) -> Array:
        """Draw the noise of the roots, [b, a], once per search; it may change their prior."""

    @abstractmethod
    def _select_actions(self, tree: TreeArrays, rows: Array) -> Array:
        """Select the next actions [m] of nodes."""

    def _select_root_actions(self, tree: TreeArrays, noise: Array, simulation: int) -> Array:
        """Select the next actions [b] of the roots; after the first simulation, its backup has selected them."""
        return tree.next_action[tree.roots] if simulation else self._select_actions(tree, tree.roots)

    @abstractmethod
    def _decide(self, tree: TreeArrays, noise: Array, seeds: Tensor, temperature: float) -> tuple[Array, Array, Array]:
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
        tree = self._make_tree(model, state)
        noise = self._root_noise(tree, fold_in(seeds, 1), temperature)
        for simulation in range(self.simulations):
            tree.next_action[tree.roots] = self._select_root_actions(tree, noise, simulation)
            changed_rows = tree.simulate(model, simulation + 1, discount)
            tree.next_action[changed_rows] = self._select_actions(tree, changed_rows)
        action, policy, value = self._decide(tree, noise, fold_in(seeds, 2), temperature)
        return TreeSearchResult(
            action=tree.to_tensor(action),
            policy=tree.to_tensor(policy).float(),
            value=tree.to_tensor(value).float(),
            visits=tree.to_tensor(tree.visits[tree.roots]).long(),
        )

    def _make_tree(self, model: TreeSearchModel, state: NestedState) -> TreeArrays:
        on_device = self.tree == "device" or (self.tree == "auto" and tree_leaves(state)[0].is_cuda)
        make = DeviceSearchTree if on_device else SearchTree
        return make(model.predict(state), state, self.simulations)

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
