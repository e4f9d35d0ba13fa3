"""Planning by a tree of what actions lead to: MuZero's search, and Gumbel MuZero's.

A tree grows over any model that says what an action leads to and, of every state, what it is worth and which actions
look good there; over a ``Simulator`` too. Each simulation walks from the root to an action that was not tried yet, asks
the model for that one step, and carries what it was worth back to the root. Where the model says that the world ended,
nothing counts any more: walks may still go on there, but what they find is multiplied by zero.

A batch of trees grows at once, with one call of the model a simulation. The states stay where the model has them; the
numbers of the trees lie in NumPy (float64), where small arrays cost a fraction of what they do in torch. What a node
would do next depends on its own numbers alone, so it is chosen anew only where a walk passed, and walking is a chase of
pointers.

Legend: b batch, a actions, m nodes that are looked at. A node of tree i is a row: i (simulations + 1) is its root.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vwm.core.seeds import fold_in, seeded_uniform, world_seeds
from vwm.core.simulator import Simulator
from vwm.core.states import NestedState, select_worlds, state_batch_size

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SMALLEST_FLOAT = np.finfo(np.float64).tiny
"""Instead of 0, where something is divided by it."""


class NodePrediction(NamedTuple):
    """What a model thinks of states before any search: logits float [b, a] of the actions, and value float [b]."""

    logits: Tensor
    value: Tensor


class TreeStep(NamedTuple):
    """What an action leads to.

    Attributes:
        state: nested tensors, the batch first.
        reward: float [b].
        terminated: bool [b]; nothing after it counts.
        guess: of the new states.
    """

    state: NestedState
    reward: Tensor
    terminated: Tensor
    guess: NodePrediction


class TreeSearchModel(Protocol):
    """What a tree grows over."""

    def guess(self, state: NestedState) -> NodePrediction:
        """Prior and value of the roots."""
        ...

    def step(self, state: NestedState, action: Tensor) -> TreeStep:
        """What actions int64 [b] lead to."""
        ...


class SimulatorTreeModel:
    """A discrete simulator as what a tree grows over; every action looks equally good.

    Args:
        simulator: asked without pixels. What it draws at random is a function of its state: the tree plans for the luck
            that this state has.
        value: what a state of the simulator is worth from there on, float [b]; None values nothing.

    Raises:
        ValueError: its actions are continuous.
    """

    def __init__(self, simulator: Simulator, value: Callable[[NestedState], Tensor] | None = None) -> None:
        if simulator.spec.actions.kind != "discrete":
            raise ValueError(f"a tree needs discrete actions, and this world's are {simulator.spec.actions.kind}")
        self.simulator, self.value = simulator, value

    def guess(self, state: NestedState) -> NodePrediction:
        """See ``TreeSearchModel``."""
        logits = torch.zeros(state_batch_size(state), self.simulator.spec.actions.size)
        return NodePrediction(logits, torch.zeros(len(logits)) if self.value is None else self.value(state))

    def step(self, state: NestedState, action: Tensor) -> TreeStep:
        """See ``TreeSearchModel``."""
        state, output = self.simulator.step(state, action, decode=False)
        return TreeStep(state, output.reward, output.terminated, self.guess(state))


class TreeSearchResult(NamedTuple):
    """What a search found.

    Attributes:
        action: int64 [b], what to do.
        policy: float32 [b, a], a better policy than the model's own: what to learn.
        value: float32 [b], what the root is worth.
        visits: int64 [b, a], how often each action of the root was tried; they sum to ``simulations``.
    """

    action: Tensor
    policy: Tensor
    value: Tensor
    visits: Tensor


class SearchTree:
    """The numbers of a batch of trees, by row; and the states."""

    def __init__(self, guess: NodePrediction, state: NestedState, simulations: int) -> None:
        batch, actions = guess.logits.shape
        self.simulations, self.stride, rows = simulations, simulations + 1, batch * (simulations + 1)
        self.roots = np.arange(batch) * self.stride
        self.logits = np.zeros((rows, actions))
        self.prior = np.zeros((rows, actions))
        self.guessed = np.zeros(rows)
        """The model's own values."""
        self.value = np.zeros(rows)
        """The mean of the model's own value and of what the walks through the node found."""
        self.count = np.zeros(rows)
        """How many numbers that is the mean of."""
        self.reward, self.discount = np.zeros(rows), np.zeros(rows)
        """Of the step into the node; the discount is 0 where the world ended."""
        self.visits = np.zeros((rows, actions), dtype=np.int64)
        self.q = np.zeros((rows, actions))
        """What the tried actions are worth; 0 where ``visits`` is."""
        self.children = np.full((rows, actions), -1)
        self.next = np.zeros(rows, dtype=np.int64)
        """The action that the next walk takes."""
        self.states = tree_map(lambda leaf: leaf.new_empty((rows, *leaf.shape[1:])), state)
        self.device = tree_leaves(state)[0].device
        self.add(self.roots, guess, state)

    def add(self, rows: Ints, guess: NodePrediction, state: NestedState) -> None:
        """New nodes."""
        logits = _to_numpy(guess.logits)
        self.logits[rows], self.prior[rows] = logits, numpy_softmax(logits)
        self.guessed[rows] = self.value[rows] = _to_numpy(guess.value)
        self.count[rows] = 1
        at = torch.from_numpy(rows).to(self.device)
        tree_map(lambda kept, new: kept.index_copy_(0, at, new.to(kept.dtype)), self.states, state)

    def walk(self) -> tuple[list[Ints], list[npt.NDArray[np.bool_]]]:
        """From the roots to nodes whose next action was never tried.

        Returns:
            The rows [b] at every depth, and which of the walks came so far; the others stand still.
        """
        rows, going = self.roots, np.ones(len(self.roots), dtype=np.bool_)
        path, came = [], []
        while going.any():
            path.append(rows)
            came.append(going)
            child = self.children[rows, self.next[rows]]
            going = child >= 0  # what stands still stands where there is no child
            rows = np.where(going, child, rows)
        return path, came

    def grow(self, model: TreeSearchModel, leaves: Ints, index: int, discount: float) -> Ints:
        """Ask the model for the next action of the leaves [b], and hang the answer below them; its rows [b]."""
        new, actions = self.roots + index, self.next[leaves]
        here = select_worlds(self.states, torch.from_numpy(leaves).to(self.device))
        step = model.step(here, torch.from_numpy(actions).to(self.device))
        self.add(new, step.guess, step.state)
        self.reward[new] = _to_numpy(step.reward)
        self.discount[new] = np.where(step.terminated.cpu().numpy(), 0.0, discount)
        self.children[leaves, actions] = new
        return new

    def back_up(self, path: list[Ints], came: list[npt.NDArray[np.bool_]], new: Ints) -> Ints:
        """Carry the values of new nodes to the roots; the rows [m] whose numbers changed, the new ones too."""
        parents, walked = np.stack(path), np.stack(came)
        further = np.concatenate((walked[1:], np.zeros_like(walked[:1])))
        children = np.where(further, np.concatenate((parents[1:], new[None])), new)
        rewards, discounts = np.where(walked, self.reward[children], 0), np.where(walked, self.discount[children], 1)
        found, returns = self.value[new], np.empty(parents.shape)
        for depth in range(len(parents) - 1, -1, -1):
            found = rewards[depth] + discounts[depth] * found
            returns[depth] = found
        rows, below = parents[walked], children[walked]
        self.count[rows] += 1
        self.value[rows] += (returns[walked] - self.value[rows]) / self.count[rows]
        actions = self.next[rows]
        self.visits[rows, actions] += 1
        self.q[rows, actions] = self.reward[below] + self.discount[below] * self.value[below]
        return np.concatenate((rows, new))


class TreeSearch(ABC):
    """Grows trees; subclasses say which action a walk takes, and what is done in the end.

    Args:
        simulations: steps of the model that a decision takes, by problem.
        span: the least difference of values that is stretched to 1. Smaller ones weigh less, or a model that knows
            nothing yet would be followed for its rounding errors (EfficientZero has 0.01; mctx stretches all).

    Raises:
        ValueError: no simulation, or no span.
    """

    def __init__(self, simulations: int, span: float) -> None:
        if simulations < 1 or not span > 0:
            raise ValueError(f"simulations must be 1 or more and span above 0, got {simulations} and {span}")
        self.simulations, self.span = simulations, span

    @abstractmethod
    def _noise(self, tree: SearchTree, seeds: Tensor, temperature: float) -> Floats:
        """What is drawn for the roots once a search, [b, a]; it may change their prior."""

    @abstractmethod
    def _choose(self, tree: SearchTree, rows: Ints) -> Ints:
        """The next actions [m] of nodes."""

    def _select_root_actions(self, tree: SearchTree, noise: Floats, simulation: int) -> Ints:
        """The next actions [b] of the roots; after the first walk they were chosen when it passed."""
        return tree.next[tree.roots] if simulation else self._choose(tree, tree.roots)

    @abstractmethod
    def _decide(
        self, tree: SearchTree, noise: Floats, seeds: Tensor, temperature: float
    ) -> tuple[Ints, Floats, Floats]:
        """What to do [b], the better policy [b, a], and what the roots are worth [b]."""

    @torch.no_grad()
    def search(
        self,
        model: TreeSearchModel,
        state: NestedState,
        discount: float = 0.997,
        seed: int | Tensor = 0,
        temperature: float = 0.0,
    ) -> TreeSearchResult:
        """Grow a tree for every state of a batch.

        Args:
            model: what the trees grow over.
            state: of b problems; it is not changed.
            discount: by which each step's reward counts less than the one before.
            seed: one, from which every problem gets its own, or int64 [b]. Give another at every decision.
            temperature: 0 does what looks best and draws nothing at random; above, it explores as in training.

        Raises:
            ValueError: discount or temperature make no sense.
        """
        if not (0 <= discount <= 1 and temperature >= 0):
            raise ValueError(f"discount must lie in 0..1 and temperature be 0 or more, got {discount}, {temperature}")
        seeds = world_seeds(seed, state_batch_size(state))
        tree = SearchTree(model.guess(state), state, self.simulations)
        noise = self._noise(tree, fold_in(seeds, 1), temperature)
        for simulation in range(self.simulations):
            tree.next[tree.roots] = self._select_root_actions(tree, noise, simulation)
            path, came = tree.walk()
            new = tree.grow(model, path[-1], simulation + 1, discount)
            changed = tree.back_up(path, came, new)
            tree.next[changed] = self._choose(tree, changed)
        action, policy, value = self._decide(tree, noise, fold_in(seeds, 2), temperature)
        found = (torch.from_numpy(x).to(tree.device) for x in (action, policy, value, tree.visits[tree.roots]))
        action_, policy_, value_, visits = found
        return TreeSearchResult(action_, policy_.float(), value_.float(), visits)

    def plan(
        self,
        simulator: Simulator,
        state: NestedState,
        discount: float = 0.997,
        value: Callable[[NestedState], Tensor] | None = None,
        seed: int | Tensor = 0,
    ) -> TreeSearchResult:
        """What to do in a simulator, by its rewards; see ``search`` and ``SimulatorTreeModel``."""
        return self.search(SimulatorTreeModel(simulator, value), state, discount, seed)


class PUCTSearch(TreeSearch):
    """MuZero's search (arXiv 1911.08265, appendix B).

    Values are stretched to 0..1 between the least and the greatest of a node's own and its tried actions', as in
    DeepMind's mctx; the paper takes the bounds of the whole tree.

    Args:
        simulations, span: see ``TreeSearch``.
        init, base: constants c1 and c2 of the weight that the prior has.
        dirichlet: concentration of the noise that is mixed into the roots' prior while exploring.
        noise: its share.

    Raises:
        ValueError: a setting makes no sense.
    """

    def __init__(
        self,
        simulations: int = 50,
        init: float = 1.25,
        base: float = 19652.0,
        dirichlet: float = 0.3,
        noise: float = 0.25,
        span: float = 0.01,
    ) -> None:
        super().__init__(simulations, span)
        if not (init >= 0 and base > 0 and dirichlet > 0 and 0 <= noise <= 1):
            raise ValueError(
                "init must be 0 or more, base and dirichlet above 0 and noise in 0..1, got "
                f"{init}, {base}, {dirichlet} and {noise}"
            )
        self.init, self.base, self.dirichlet, self.noise = init, base, dirichlet, noise

    def _noise(self, tree: SearchTree, seeds: Tensor, temperature: float) -> Floats:
        if temperature == 0:
            return np.zeros_like(tree.prior[tree.roots])
        concentration = np.full(tree.prior.shape[1], self.dirichlet)
        draws = [np.random.default_rng(s & (2**64 - 1)).dirichlet(concentration) for s in seeds.tolist()]
        drawn = np.stack(draws)
        tree.prior[tree.roots] = (1 - self.noise) * tree.prior[tree.roots] + self.noise * drawn
        return drawn

    def _choose(self, tree: SearchTree, rows: Ints) -> Ints:
        visits, own, count = tree.visits[rows], tree.value[rows][:, None], tree.count[rows][:, None]
        q = np.where(visits > 0, tree.q[rows], own)
        low, high = np.minimum(own, q.min(1, keepdims=True)), np.maximum(own, q.max(1, keepdims=True))
        worth = np.where(visits > 0, (q - low) / np.maximum(high - low, self.span), 0)
        weight = self.init + np.log((count + self.base + 1) / self.base)
        return (worth + np.sqrt(count) * weight * tree.prior[rows] / (visits + 1)).argmax(1)

    def _decide(
        self, tree: SearchTree, noise: Floats, seeds: Tensor, temperature: float
    ) -> tuple[Ints, Floats, Floats]:
        policy, value = tree.visits[tree.roots] / tree.simulations, tree.value[tree.roots]
        if temperature == 0:
            return policy.argmax(1), policy, value
        weights = (policy / policy.max(1, keepdims=True)) ** (1 / temperature)
        reach = weights.cumsum(1)
        return (reach < seeded_uniform(seeds, 1).double().numpy() * reach[:, -1:]).sum(1), policy, value


class GumbelMuZeroSearch(TreeSearch):
    """Gumbel MuZero (Danihelka and others, Policy improvement by planning with Gumbel, ICLR 2022): few simulations do.

    At the roots, actions are drawn without replacement by Gumbel noise and raced by sequential halving; below,
    visits follow the improved policy. Actions that were not tried count as worth the mixed value (appendix D). A root
    is worth what the improved policy is: the mean over the simulations, which the race spends on bad actions as much
    as on good ones, would be too low. Below the roots it trusts the model; over a world without values or a prior,
    PUCT looks wider.

    Args:
        simulations, span: see ``TreeSearch``.
        considered: actions that are raced, at most.
        value_scale, visit_offset: values weigh (visit_offset + the most visits) value_scale against the logits.

    Raises:
        ValueError: a setting makes no sense.
    """

    def __init__(
        self,
        simulations: int = 50,
        considered: int = 16,
        value_scale: float = 0.1,
        visit_offset: float = 50.0,
        span: float = 0.01,
    ) -> None:
        super().__init__(simulations, span)
        if considered < 1 or not (value_scale > 0 and visit_offset >= 0):
            raise ValueError(
                "considered must be 1 or more, value_scale above 0 and visit_offset 0 or more, got "
                f"{considered}, {value_scale} and {visit_offset}"
            )
        self.considered, self.value_scale, self.visit_offset = considered, value_scale, visit_offset

    def _noise(self, tree: SearchTree, seeds: Tensor, temperature: float) -> Floats:
        """The Gumbel noise, times the temperature: the action is one of softmax((logits + values) / temperature)."""
        shape = tree.prior[tree.roots].shape
        return temperature * -np.log(-np.log(seeded_uniform(seeds, shape[1]).double().numpy()))

    def _completed_q_values(self, tree: SearchTree, rows: Ints) -> Floats:
        """What all actions are worth, those that were not tried too, [m, a]."""
        visits, prior, q = tree.visits[rows], tree.prior[rows], tree.q[rows]
        tried = np.where(visits > 0, np.maximum(prior, SMALLEST_FLOAT), 0)
        mean = (tried * q).sum(1) / np.maximum(tried.sum(1), SMALLEST_FLOAT)
        total = visits.sum(1)
        mixed = (tree.guessed[rows] + total * mean) / (total + 1)
        return np.where(visits > 0, q, mixed[:, None])

    def _improved_logits(self, tree: SearchTree, rows: Ints, worths: Floats) -> Floats:
        """The logits of the improved policy, [m, a]."""
        low, high = worths.min(1, keepdims=True), worths.max(1, keepdims=True)
        weight = self.value_scale * (self.visit_offset + tree.visits[rows].max(1, keepdims=True))
        return tree.logits[rows] + weight * (worths - low) / np.maximum(high - low, self.span)

    def _choose(self, tree: SearchTree, rows: Ints) -> Ints:
        visits, wanted = (
            tree.visits[rows],
            numpy_softmax(self._improved_logits(tree, rows, self._completed_q_values(tree, rows))),
        )
        return (wanted - visits / (1 + visits.sum(1, keepdims=True))).argmax(1)

    def _select_root_actions(self, tree: SearchTree, noise: Floats, simulation: int) -> Ints:
        considered = min(self.considered, noise.shape[1])
        turn = sequential_halving(considered, tree.simulations)[simulation]
        return self._best(tree, noise, np.full((len(noise), 1), turn))

    def _best(self, tree: SearchTree, noise: Floats, turn: Ints) -> Ints:
        """Of the roots' actions that were tried ``turn`` times, the best."""
        scores = noise + self._improved_logits(tree, tree.roots, self._completed_q_values(tree, tree.roots))
        return np.where(tree.visits[tree.roots] == turn, scores, -np.inf).argmax(1)

    def _decide(
        self, tree: SearchTree, noise: Floats, seeds: Tensor, temperature: float
    ) -> tuple[Ints, Floats, Floats]:
        action = self._best(tree, noise, tree.visits[tree.roots].max(1, keepdims=True))
        worths = self._completed_q_values(tree, tree.roots)
        policy = numpy_softmax(self._improved_logits(tree, tree.roots, worths))
        return action, policy, (policy * worths).sum(1)


def sequential_halving(considered: int, simulations: int) -> list[int]:
    """Sequential halving: how often an action must have been tried already to be the next one, by simulation.

    The simulations are shared evenly by the rounds, and in each round by the actions that are left, of which the better
    half goes on; two are left at least.

    Args:
        considered: actions at the start.
        simulations: in all.
    """
    rounds, left, tried, turns = max(1, math.ceil(math.log2(considered))), considered, 0, list[int]()
    while len(turns) < simulations:
        times = max(1, simulations // (rounds * left))
        turns += [tried + i for i in range(times) for _ in range(left)]
        tried += times
        left = max(2, left // 2) if considered > 1 else 1
    return turns[:simulations]


def numpy_softmax(logits: Floats) -> Floats:
    """Over the last dimension."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _to_numpy(x: Tensor) -> Any:
    return x.detach().cpu().double().numpy()
