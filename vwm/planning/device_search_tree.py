"""A batch of search trees whose numbers stay on the model's device.

There, waiting for the host takes longer than arithmetic. A simulation therefore reads nothing back and has no loop over
depth: the leaf is found by pointer doubling, the path to it is a row of a table of ancestors, and returns are suffix
sums of an associative operation, so that the number of operations grows with the logarithm of the depth. The next
actions of all nodes are computed again.

Results are those of ``SearchTree`` up to rounding (float64).

Legend: b trees, n nodes of each (simulations + 1), a actions, d depth. A node is a row: the root of tree i is row i n.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vwm.core.states import NestedState, select_worlds
from vwm.planning.search_tree import softmax
from vwm.planning.tree_search_model import NodePrediction, TreeSearchModel


class DeviceSearchTree:
    """See ``SearchTree``, whose attributes these are as float64 tensors, except that ``visits`` are float64, too.

    Args:
        prediction, state, simulations: see there.
    """

    xp: ModuleType = torch

    def __init__(self, prediction: NodePrediction, state: NestedState, simulations: int) -> None:
        batch, actions = prediction.logits.shape
        nodes, device = simulations + 1, tree_leaves(state)[0].device
        self.simulations = simulations
        self.num_nodes = nodes
        self.device = device
        self.roots = nodes * torch.arange(batch, device=device)
        per_action = {"dtype": torch.float64, "device": device}
        self.logits, self.prior, self.visits, self.q = torch.zeros(4, batch * nodes, actions, **per_action)
        self.predicted_value, self.value, self.value_count, self.reward, self.discount = torch.zeros(
            5, batch * nodes, **per_action
        )
        self.children = torch.full((batch * nodes, actions), -1, device=device)
        """Number of the child within the tree; -1 where there is none."""
        self.next_action = torch.zeros(batch * nodes, dtype=torch.int64, device=device)
        self.depth = torch.zeros(batch, nodes, dtype=torch.int64, device=device)
        self.on_path = torch.zeros(batch, nodes, nodes, dtype=torch.bool, device=device)
        """Whether the path from the root to a node [b, n] goes through another one or ends there."""
        self.on_path[:, 0, 0] = True
        self.states = tree_map(lambda leaf: leaf.new_empty((batch * nodes, *leaf.shape[1:])), state)
        self._add_nodes(self.roots, prediction, state)

    def to_array(self, x: Any) -> Tensor:
        """Copy numbers of the host to the device."""
        return torch.as_tensor(x, device=self.device)

    def to_tensor(self, x: Tensor) -> Tensor:
        """Return an array of this tree as a tensor on the states' device."""
        return x

    def simulate(self, model: TreeSearchModel, index: int, discount: float) -> slice:
        """Follow the next actions to a leaf in every tree, add a node there and update the nodes on the way.

        Args:
            model: predicts the outcome.
            index: number of the new node within each tree; those below exist.
            discount: per step.

        Returns:
            The rows whose statistics changed, and others.
        """
        leaf = self._find_leaves(index)
        rows, new_rows = self.roots + leaf, self.roots + index
        actions = self.next_action[rows]
        step = model.step(select_worlds(self.states, rows), actions)
        self._add_nodes(new_rows, step.prediction, step.state)
        self.reward[new_rows] = step.reward.double()
        self.discount[new_rows] = discount * (~step.terminated).double()
        self.children[rows, actions] = index
        path = self.on_path[torch.arange(len(leaf), device=self.device), leaf]
        self._backup(path, leaf, index)
        self.on_path[:, index] = path
        self.on_path[:, index, index] = True
        self.depth[:, index] = self.depth.gather(1, leaf[:, None])[:, 0] + 1
        return slice(None)

    def _add_nodes(self, rows: Tensor, prediction: NodePrediction, state: NestedState) -> None:
        logits, value = prediction.logits.double(), prediction.value.double()
        self.logits[rows] = logits.to(self.device)
        self.prior[rows] = softmax(self, self.logits[rows])
        self.predicted_value[rows] = value.to(self.device)
        self.value[rows] = self.predicted_value[rows]
        self.value_count[rows] = 1.0
        tree_map(lambda stored, new: stored.index_copy_(0, rows, new.to(stored.dtype)), self.states, state)

    def _find_leaves(self, index: int) -> Tensor:
        """Return the nodes [b] where the next action has no child, following the next actions from the roots."""
        child = self.children.gather(1, self.next_action[:, None]).view(-1, self.num_nodes)[:, :index]
        pointer = torch.where(child >= 0, child, torch.arange(index, device=self.device))
        for _ in range(_doublings(index)):
            pointer = pointer.gather(1, pointer)
        return pointer[:, 0]

    def _backup(self, path: Tensor, leaf: Tensor, index: int) -> None:
        """Add a simulation's returns to the nodes on its path, bool [b, n], which a new node continues."""
        levels = index  # a path has at most as many nodes as there are
        depth, last = self.depth, self.depth.gather(1, leaf[:, None])
        # [b, d + 1]: the nodes of the path by depth; what is not on it goes to the last place.
        place = torch.where(path, depth, levels)
        nodes = torch.zeros(len(leaf), levels + 1, dtype=torch.int64, device=self.device)
        nodes = nodes.scatter_(1, place, torch.arange(self.num_nodes, device=self.device).expand_as(place))
        level = torch.arange(levels, device=self.device)
        child = torch.where(level < last, nodes[:, 1:], index)
        child_rows = self.roots[:, None] + child
        rewards = torch.where(level <= last, self.reward[child_rows], 0.0)
        discounts = torch.where(level <= last, self.discount[child_rows], 1.0)
        returns = _discounted_suffix_sums(rewards, discounts, self.value[self.roots + index])
        # Back to nodes; of those that are not on the path nothing is kept.
        place = torch.where(path, depth, 0)
        value, count = self.value.view_as(path), self.value_count.view_as(path)
        count += path
        value += torch.where(path, (returns.gather(1, place) - value) / count, 0.0)
        child_rows = child_rows.gather(1, place)
        q = self.reward[child_rows] + self.discount[child_rows] * self.value[child_rows]
        action = self.next_action[:, None]
        self.visits.scatter_add_(1, action, path.view(-1, 1).double())
        self.q.scatter_(1, action, torch.where(path.view(-1, 1), q.view(-1, 1), self.q.gather(1, action)))


def _doublings(length: int) -> int:
    """Return how often steps are doubled until they are at least ``length``."""
    return math.ceil(math.log2(length)) if length > 1 else 0


def _discounted_suffix_sums(rewards: Tensor, discounts: Tensor, final: Tensor) -> Tensor:
    """Return g[t] = rewards[t] + discounts[t] g[t + 1] with g = ``final`` [b] after the end: [b, d] each.

    Steps x -> r + c x compose to steps of the same form, so their lengths can be doubled.
    """
    length = 1
    while length < rewards.shape[1]:
        later_rewards = torch.nn.functional.pad(rewards[:, length:], (0, length))
        later_discounts = torch.nn.functional.pad(discounts[:, length:], (0, length), value=1.0)
        rewards, discounts = rewards + discounts * later_rewards, discounts * later_discounts
        length *= 2
    return rewards + discounts * final[:, None]
