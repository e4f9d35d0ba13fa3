"""Prioritized replay (Schaul et al., arXiv 1511.05952): which sequences are drawn, in proportion to their priorities.

A sequence is named by one of its time steps, the root, whose priority counts.

Legend: n environments, m time steps kept of each, b sequences drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SMALLEST_PRIORITY = 1e-6
"""Added to every priority, so that all sequences are drawn at some time (EfficientZero's code)."""


@dataclass(frozen=True)
class ReplayPriorities:
    """How priorities act.

    Attributes:
        exponent: sequences are drawn in proportion to their priority raised to this power; 0 draws uniformly.
        correction: exponent of the weights that undo the bias of the drawing, at the first update.
        final_correction: the same at the last update; linear in between.

    Raises:
        ValueError: an exponent is out of range.
    """

    exponent: float = 0.6
    correction: float = 0.4
    final_correction: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} of priorities must lie in 0..1, got {value}")

    def correction_at(self, updates: int, total_updates: int) -> float:
        """Return the exponent of the weights after a number of updates; the first one while the total is 0."""
        progress = min(1.0, updates / total_updates) if total_updates else 0.0
        return self.correction + progress * (self.final_correction - self.correction)


class SumTree:
    """Numbers whose sums are kept in a binary tree, so that drawing and changing one takes logarithmic time.

    Every inner node is the sum of its two children, so the tree is a function of its leaves alone.

    Args:
        count: number of leaves, 0 at first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.first_leaf = 1 << max(0, count - 1).bit_length()
        self.nodes = np.zeros(2 * self.first_leaf)
        """The root is node 1, and the children of node i are 2 i and 2 i + 1."""

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self.nodes[1])

    @property
    def leaves(self) -> NDArray[np.float64]:
        """The numbers, [count]."""
        return self.nodes[self.first_leaf : self.first_leaf + self.count]

    def write(self, indices: NDArray[np.int64], values: NDArray[np.float64] | float) -> None:
        """Set leaves; of equal indices the last value counts."""
        nodes = indices + self.first_leaf
        self.nodes[nodes] = values
        while nodes.size and nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    def find(self, sums: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the leaves at which the running sum of all leaves first exceeds ``sums``, never one that is 0."""
        nodes, rest = np.ones(len(sums), dtype=np.int64), sums.copy()
        while nodes[0] < self.first_leaf:
            left, right = self.nodes[2 * nodes], self.nodes[2 * nodes + 1]
            goes_right = (left == 0) | ((rest >= left) & (right > 0))
            rest = np.where(goes_right, rest - left, rest)
            nodes = 2 * nodes + goes_right
        return nodes - self.first_leaf


class SequencePriorities:
    """The priorities of the sequences in a ring of time steps, by the flat position of their roots.

    A sequence that was never learned from has the highest priority so far.

    Args:
        num_envs: n.
        size: m.
        length: of the sequences.
        root: position of the root within its sequence.
        config: see its class.

    Raises:
        ValueError: the ring is too small for a sequence.
    """

    def __init__(self, num_envs: int, size: int, length: int, root: int, config: ReplayPriorities) -> None:
        if size < length:
            raise ValueError(f"prioritized replay keeps {size} time steps per environment, fewer than length={length}")
        self.size = size
        self.length = length
        self.root = root
        self.config = config
        self.env_offsets = np.arange(num_envs) * size
        self.tree = SumTree(num_envs * size)
        self.highest = 1.0

    def follow(self, num_added: int) -> None:
        """Note that a time step was added in every environment.

        Args:
            num_added: time steps added to each so far.
        """
        overwritten = num_added - self.size - 1  # the start of the sequence that is no longer whole
        if overwritten >= 0:
            self.tree.write(self.env_offsets + (overwritten + self.root) % self.size, 0.0)
        completed = num_added - self.length
        if completed >= 0:
            roots = self.env_offsets + (completed + self.root) % self.size
            self.tree.write(roots, self.highest**self.config.exponent)

    def draw(
        self, generator: np.random.Generator, batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Draw sequences.

        Returns:
            Environments [b], positions of the sequences' first time steps in the ring [b], and the probabilities with
            which they were drawn relative to uniform ones, float32 [b].
        """
        leaves, total = self.tree.leaves, self.tree.total
        roots = self.tree.find(generator.random(batch) * total)
        relative = leaves[roots] / total * np.count_nonzero(leaves)
        return roots // self.size, (roots % self.size - self.root) % self.size, relative.astype(np.float32)

    def update(self, roots: NDArray[np.int64], priorities: NDArray[np.floating[Any]]) -> None:
        """Set the priorities [b] of drawn sequences by their roots [b]; of equal roots the last one counts."""
        values = priorities.astype(np.float64) + SMALLEST_PRIORITY
        self.highest = max(self.highest, float(values.max()))
        self.tree.write(roots, values**self.config.exponent)

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` restores."""
        return {"leaves": torch.from_numpy(self.tree.leaves.copy()), "highest": self.highest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the priorities.

        Raises:
            ValueError: they are those of a buffer of another size.
        """
        leaves = state["leaves"].numpy()
        if len(leaves) != self.tree.count:
            raise ValueError(f"the priorities are of {len(leaves)} time steps, these are {self.tree.count}")
        self.tree.write(np.arange(self.tree.count), leaves)
        self.highest = float(state["highest"])
