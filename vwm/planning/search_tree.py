"""A batch of search trees as arrays of nodes.

The states stay on the model's device; the numbers of the trees are NumPy arrays (float64), where operations on small
arrays are much faster than in torch. The next action of a node depends only on the node's own numbers, so it is
computed again only for the nodes that a simulation visited, and selecting a leaf only follows indices.

Legend: b trees, a actions, m selected nodes, d depth. A node is a row: the root of tree i is row i (simulations + 1).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vwm.core.states import NestedState, select_worlds
from vwm.planning.tree_search_model import NodePrediction, TreeSearchModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Array = Any
"""An array of a tree: of NumPy, or of torch on a device. The rules of a search use functions that both have."""


class TreeArrays(Protocol):
    """The numbers of a batch of trees, which the rules of a search read; see ``SearchTree`` for each.

    Attributes:
        xp: the module of the arrays' functions, NumPy or torch.
    """

    xp: ModuleType
    simulations: int
    device: torch.device
    roots: Array
    logits: Array
    prior: Array
    predicted_value: Array
    value: Array
    value_count: Array
    visits: Array
    q: Array
    next_action: Array

    def to_array(self, x: Any) -> Array:
        """Make an array of this tree of one of NumPy."""
        ...

    def to_tensor(self, x: Array) -> Tensor:
        """Make a tensor on the states' device of an array of this tree."""
        ...

    def simulate(self, model: TreeSearchModel, index: int, discount: float) -> Any:
        """Add one node to every tree and update the nodes on its path; return the rows that changed."""
        ...


class SearchTree:
    """The statistics and states of all nodes of a batch of trees, by row.

    Args:
        prediction: of the roots.
        state: of the roots.
        simulations: nodes that are added to the root of each tree.
    """

    xp: ModuleType = np

    def __init__(self, prediction: NodePrediction, state: NestedState, simulations: int) -> None:
        batch, actions = prediction.logits.shape
        rows = batch * (simulations + 1)
        self.simulations = simulations
        self.roots = np.arange(batch) * (simulations + 1)
        self.logits = np.zeros((rows, actions))
        self.prior = np.zeros((rows, actions))
        self.predicted_value = np.zeros(rows)
        """Value that the model predicts."""
        self.value = np.zeros(rows)
        """Mean of the predicted value and of the returns of all simulations through the node."""
        self.value_count = np.zeros(rows)
        """Number of values in that mean."""
        self.reward = np.zeros(rows)
        """Reward of the step into the node."""
        self.discount = np.zeros(rows)
        """Discount of the step into the node; 0 after a termination."""
        self.visits = np.zeros((rows, actions), dtype=np.int64)
        self.q = np.zeros((rows, actions))
        """Values of the tried actions; 0 where ``visits`` is 0."""
        self.children = np.full((rows, actions), -1)
        self.next_action = np.zeros(rows, dtype=np.int64)
        """Action that the next simulation takes."""
        self.states = tree_map(lambda leaf: leaf.new_empty((rows, *leaf.shape[1:])), state)
        self.device = tree_leaves(state)[0].device
        self.add_nodes(self.roots, prediction, state)

    def to_array(self, x: Any) -> Array:
        """Return an array as it is."""
        return x

    def to_tensor(self, x: Array) -> Tensor:
        """Copy an array to the states' device."""
        return torch.from_numpy(x).to(self.device)

    def simulate(self, model: TreeSearchModel, index: int, discount: float) -> Ints:
        """Follow the next actions to a leaf in every tree, add a node there and update the nodes on the way.

        Args:
            model: predicts the outcome.
            index: number of the new node within each tree.
            discount: per step.

        Returns:
            The rows [m] whose statistics changed, the new ones included.
        """
        path, active_at = self.select_leaves()
        new_rows = self.expand(model, path[-1], index, discount)
        return self.backup(path, active_at, new_rows)

    def add_nodes(self, rows: Ints, prediction: NodePrediction, state: NestedState) -> None:
        """Write new nodes to rows."""
        logits = _to_numpy(prediction.logits)
        self.logits[rows] = logits
        self.prior[rows] = softmax(self, logits)
        self.predicted_value[rows] = self.value[rows] = _to_numpy(prediction.value)
        self.value_count[rows] = 1
        index = torch.from_numpy(rows).to(self.device)
        tree_map(lambda stored, new: stored.index_copy_(0, index, new.to(stored.dtype)), self.states, state)

    def select_leaves(self) -> tuple[list[Ints], list[Bools]]:
        """Follow the next actions from the roots to the nodes where the next action has not been tried.

        Returns:
            For each depth, the rows [b] and which trees reach that depth, bool [b]; the others repeat their leaf.
        """
        rows, active = self.roots, np.ones(len(self.roots), dtype=np.bool_)
        path, active_at = [], []
        while active.any():
            path.append(rows)
            active_at.append(active)
            child = self.children[rows, self.next_action[rows]]
            active = child >= 0  # a tree that reached its leaf stays inactive: it has no such child
            rows = np.where(active, child, rows)
        return path, active_at

    def expand(self, model: TreeSearchModel, leaves: Ints, index: int, discount: float) -> Ints:
        """Add the outcome of the next action below the leaves [b].

        Args:
            model: predicts the outcome.
            leaves: rows [b].
            index: number of the new node within each tree.
            discount: per step.

        Returns:
            The rows of the new nodes, [b].
        """
        new_rows, actions = self.roots + index, self.next_action[leaves]
        states = select_worlds(self.states, torch.from_numpy(leaves).to(self.device))
        step = model.step(states, torch.from_numpy(actions).to(self.device))
        self.add_nodes(new_rows, step.prediction, step.state)
        self.reward[new_rows] = _to_numpy(step.reward)
        self.discount[new_rows] = np.where(step.terminated.cpu().numpy(), 0.0, discount)
        self.children[leaves, actions] = new_rows
        return new_rows

    def backup(self, path: list[Ints], active_at: list[Bools], new_rows: Ints) -> Ints:
        """Update the statistics of all nodes on the paths with the values of the new nodes.

        Args:
            path, active_at: as ``select_leaves`` returned them.
            new_rows: rows of the new nodes, [b].

        Returns:
            The rows [m] whose statistics changed, the new ones included.
        """
        parents, visited = np.stack(path), np.stack(active_at)  # [d, b]
        has_child_on_path = np.concatenate((visited[1:], np.zeros_like(visited[:1])))
        children = np.where(has_child_on_path, np.concatenate((parents[1:], new_rows[None])), new_rows)
        rewards = np.where(visited, self.reward[children], 0)
        discounts = np.where(visited, self.discount[children], 1)
        value, returns = self.value[new_rows], np.empty(parents.shape)
        for depth in range(len(parents) - 1, -1, -1):
            value = rewards[depth] + discounts[depth] * value
            returns[depth] = value
        rows, child_rows = parents[visited], children[visited]
        self.value_count[rows] += 1
        self.value[rows] += (returns[visited] - self.value[rows]) / self.value_count[rows]
        actions = self.next_action[rows]
        self.visits[rows, actions] += 1
        self.q[rows, actions] = self.reward[child_rows] + self.discount[child_rows] * self.value[child_rows]
        return np.concatenate((rows, new_rows))


def softmax(tree: Any, logits: Array) -> Array:
    """Take the softmax over the last dimension of an array of a tree."""
    exponentials = tree.xp.exp(logits - tree.xp.amax(logits, axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _to_numpy(x: Tensor) -> Any:
    return x.detach().cpu().double().numpy()
