"""MuZero's search: PUCT with Dirichlet noise at the root (arXiv 1911.08265, appendix B)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vwm.core.seeds import seeded_uniform
from vwm.planning.search_tree import Array, TreeArrays
from vwm.planning.tree_search import TreeKind, TreeSearch


class PUCTSearch(TreeSearch):
    """MuZero's search (arXiv 1911.08265, appendix B).

    Values are normalized to 0..1 between the lowest and the highest of a node's value and its tried actions' values, as
    in DeepMind's mctx; the paper uses the lowest and highest values of the whole tree.

    Args:
        simulations, min_value_range, tree: see ``TreeSearch``.
        pb_c_init, pb_c_base: constants c1 and c2 of the prior's weight.
        dirichlet_alpha: concentration of the noise that is mixed into the roots' prior when exploring.
        dirichlet_fraction: fraction of that noise in the mixture.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        simulations: int = 50,
        pb_c_init: float = 1.25,
        pb_c_base: float = 19652.0,
        dirichlet_alpha: float = 0.3,
        dirichlet_fraction: float = 0.25,
        min_value_range: float = 0.01,
        tree: TreeKind = "auto",
    ) -> None:
        super().__init__(simulations, min_value_range, tree)
        if not (pb_c_init >= 0 and pb_c_base > 0 and dirichlet_alpha > 0 and 0 <= dirichlet_fraction <= 1):
            raise ValueError(
                "pb_c_init must be 0 or more, pb_c_base and dirichlet_alpha above 0 and dirichlet_fraction in 0..1, "
                f"got {pb_c_init}, {pb_c_base}, {dirichlet_alpha} and {dirichlet_fraction}"
            )
        self.pb_c_init = pb_c_init
        self.pb_c_base = pb_c_base
        self.dirichlet_alpha = dirichlet_alpha
        self.dirichlet_fraction = dirichlet_fraction

    def _root_noise(self, tree: TreeArrays, seeds: Tensor, temperature: float) -> Array:
        prior = tree.prior[tree.roots]
        if temperature == 0:
            return tree.xp.zeros_like(prior)
        alpha = np.full(prior.shape[1], self.dirichlet_alpha)
        draws = np.stack([np.random.default_rng(s & (2**64 - 1)).dirichlet(alpha) for s in seeds.tolist()])
        noise, fraction = tree.to_array(draws), self.dirichlet_fraction
        tree.prior[tree.roots] = (1 - fraction) * prior + fraction * noise
        return noise

    def _select_actions(self, tree: TreeArrays, rows: Array) -> Array:
        xp, visits, value, count = (
            tree.xp,
            tree.visits[rows],
            tree.value[rows][:, None],
            tree.value_count[rows][:, None],
        )
        q = xp.where(visits > 0, tree.q[rows], value)
        low = xp.minimum(value, xp.amin(q, axis=1, keepdims=True))
        high = xp.maximum(value, xp.amax(q, axis=1, keepdims=True))
        normalized = xp.where(visits > 0, (q - low) / xp.clip(high - low, self.min_value_range, None), 0)
        weight = self.pb_c_init + xp.log((count + self.pb_c_base + 1) / self.pb_c_base)
        return (normalized + xp.sqrt(count) * weight * tree.prior[rows] / (visits + 1)).argmax(1)

    def _decide(self, tree: TreeArrays, noise: Array, seeds: Tensor, temperature: float) -> tuple[Array, Array, Array]:
        policy, value = tree.visits[tree.roots] / tree.simulations, tree.value[tree.roots]
        if temperature == 0:
            return policy.argmax(1), policy, value
        weights = (policy / tree.xp.amax(policy, axis=1, keepdims=True)) ** (1 / temperature)
        cumulative = weights.cumsum(1)
        uniform = tree.to_array(seeded_uniform(seeds, 1).double().numpy())
        return (cumulative < uniform * cumulative[:, -1:]).sum(1), policy, value
