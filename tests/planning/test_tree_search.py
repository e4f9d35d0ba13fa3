"""Tree search equals a plain reference implementation of the papers, and finds the optimal action."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rooms_world import ExactRooms
from torch import Tensor

from vwm.core.action_parts import ActionPart
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.planning.gumbel_search import GumbelMuZeroSearch, sequential_halving
from vwm.planning.puct_search import PUCTSearch
from vwm.planning.tree_search_model import NodePrediction, TreeStep

SEARCHES = {"puct": PUCTSearch, "gumbel": GumbelMuZeroSearch}


class TabularWorld(Simulator):
    """A random tabular Markov decision process, in which some actions terminate."""

    def __init__(self, states: int = 7, actions: int = 3, seed: int = 0, termination_rate: float = 0.15) -> None:
        g = torch.Generator().manual_seed(seed)
        self.spec = SimulatorSpec(
            ObservationSpace.latent(), ActionSpace("discrete", actions), context=ObservationSpace.vector(1)
        )
        self.next = torch.randint(0, states, (states, actions), generator=g)
        self.reward = torch.rand(states, actions, generator=g, dtype=torch.float64)
        self.terminates = torch.rand(states, actions, generator=g) < termination_rate
        self.logits = torch.randn(states, actions, generator=g, dtype=torch.float64)
        self.values = torch.rand(states, generator=g, dtype=torch.float64) * 2
        self.steps = 0

    def reset(self, context, seed=0, context_actions=None):
        self.check_context(context)
        return context[:, -1, 0].long(), context[:, -1]

    def step(self, state, action, decode=True):
        self.check_action(action, len(state))
        self.steps += 1
        latent, reward, terminated = (table[state, action] for table in (self.next, self.reward, self.terminates))
        return latent, StepOutput(None, latent, reward, terminated)

    def optimal_q(self, discount: float) -> Tensor:
        """Compute the optimal action values, [states, actions], by value iteration."""
        q = torch.zeros_like(self.reward)
        for _ in range(300):
            q = self.reward + discount * torch.where(self.terminates, 0, q.max(1).values[self.next])
        return q


class TabularModel:
    """A tabular world as the model of a search, with the prior and the values of its tables."""

    def __init__(self, world: TabularWorld) -> None:
        self.world = world

    def predict(self, state):
        return NodePrediction(self.world.logits[state], self.world.values[state])

    def step(self, state, action):
        state, output = self.world.step(state, action)
        return TreeStep(state, output.reward, output.terminated, self.predict(state))


class Node:
    """A node of the reference search."""

    def __init__(self, world: TabularWorld, state: int, reward: float = 0.0, discount: float = 0.0) -> None:
        self.state, self.reward, self.discount = state, reward, discount
        self.logits, self.predicted_value = world.logits[state].tolist(), float(world.values[state])
        self.prior = torch.tensor(self.logits, dtype=torch.float64).softmax(0).tolist()
        self.returns, self.children, self.visits = [self.predicted_value], {}, [0] * len(self.logits)

    @property
    def value(self) -> float:
        return sum(self.returns) / len(self.returns)

    def q(self, action: int) -> float:
        child = self.children[action]
        return child.reward + child.discount * child.value


def puct_action(node: Node) -> int:
    values = [node.q(a) for a in node.children] + [node.value]
    low, high = min(values), max(values)
    scores = []
    for a, prior in enumerate(node.prior):
        value = (node.q(a) - low) / max(high - low, 1e-8) if a in node.children else 0.0
        total = sum(node.visits) + 1
        scores.append(
            value + prior * math.sqrt(total) / (1 + node.visits[a]) * (1.25 + math.log((total + 19653) / 19652))
        )
    return scores.index(max(scores))


def improved_logits(node: Node) -> list[float]:
    total = sum(node.visits)
    mixed = node.predicted_value
    if total:
        weight = sum(node.prior[a] for a in node.children)
        mean = sum(node.prior[a] * node.q(a) for a in node.children) / weight
        mixed = (node.predicted_value + total * mean) / (total + 1)
    q = [node.q(a) if a in node.children else mixed for a in range(len(node.prior))]
    span = max(max(q) - min(q), 1e-8)
    scale = (50 + max(node.visits)) * 0.1 / span
    return [logit + scale * (x - min(q)) for logit, x in zip(node.logits, q, strict=True)]


def gumbel_action(node: Node) -> int:
    policy = torch.tensor(improved_logits(node), dtype=torch.float64).softmax(0).tolist()
    scores = [p - n / (1 + sum(node.visits)) for p, n in zip(policy, node.visits, strict=True)]
    return scores.index(max(scores))


def reference_search(
    world: TabularWorld, state: int, simulations: int, discount: float, kind: str, schedule: list[int]
) -> Node:
    root = Node(world, state)
    for simulation in range(simulations):
        node, path = root, [root]
        while True:
            action = puct_action(node) if kind == "puct" else gumbel_action(node)
            if kind == "gumbel" and node is root:
                scores = improved_logits(root)
                candidates = [a for a in range(len(scores)) if root.visits[a] == schedule[simulation]]
                action = max(candidates, key=lambda a: scores[a])
            node.visits[action] += 1
            if action not in node.children:
                break
            node = node.children[action]
            path.append(node)
        index = (node.state, action)
        new = Node(
            world, int(world.next[index]), float(world.reward[index]), 0.0 if world.terminates[index] else discount
        )
        node.children[action] = new
        value = new.predicted_value
        for child, parent in zip([new, *path[:0:-1]], path[::-1], strict=True):
            value = child.reward + child.discount * value
            parent.returns.append(value)
    return root


@pytest.mark.parametrize("tree", ["host", "device"])
@pytest.mark.parametrize("kind", ["puct", "gumbel"])
def test_visits_and_values_equal_the_reference_search(kind, tree):
    world = TabularWorld(states=9, actions=4)
    search = SEARCHES[kind](60, min_value_range=1e-8, tree=tree)
    result = search.search(TabularModel(world), torch.arange(9), discount=0.9)
    for state in range(9):
        root = reference_search(world, state, 60, 0.9, kind, sequential_halving(4, 60))
        assert result.visits[state].tolist() == root.visits
        if kind == "puct":
            assert float(result.value[state]) == pytest.approx(root.value, rel=1e-6)
            assert result.policy[state].tolist() == pytest.approx([n / 60 for n in root.visits])
        else:
            policy = torch.tensor(improved_logits(root), dtype=torch.float64).softmax(0)
            assert result.policy[state].tolist() == pytest.approx(policy.tolist(), abs=1e-6)
            expected = sum(float(policy[a]) * root.q(a) for a in range(4))
            assert float(result.value[state]) == pytest.approx(expected, rel=1e-6)


def test_many_simulations_find_the_optimal_action_and_value():
    world, states = TabularWorld(), torch.arange(7)
    optimal_q, errors = world.optimal_q(0.4), []
    for simulations in (10, 100, 1000):
        result = PUCTSearch(simulations).plan(world, states, discount=0.4)
        errors.append(float((result.value - optimal_q.max(1).values).abs().max()))
    assert torch.equal(result.action, optimal_q.argmax(1))
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3 and errors[2] < 0.06
    assert world.steps == 10 + 100 + 1000  # one model call per simulation for the whole batch


@pytest.mark.parametrize("kind", list(SEARCHES))
def test_few_simulations_find_the_optimal_action_with_true_values(kind):
    world, states = TabularWorld(), torch.arange(7)
    optimal_q = world.optimal_q(0.5)
    result = SEARCHES[kind](80).plan(world, states, discount=0.5, value=lambda s: optimal_q.max(1).values[s])
    assert torch.equal(result.action, optimal_q.argmax(1))
    error = (result.value - optimal_q.max(1).values).abs().max()
    assert error < (0.2 if kind == "puct" else 0.1)  # of about 2; the mean over all simulations is lower


@pytest.mark.parametrize("tree", ["host", "device"])
@pytest.mark.parametrize("kind", list(SEARCHES))
def test_rewards_after_termination_do_not_count(kind, tree):
    """Action 0 has reward 1 and terminates; action 1 has reward 0 and leads to a state with reward 1 at every step."""
    world = TabularWorld(states=3, actions=2)
    world.next = torch.tensor([[2, 1], [1, 1], [2, 2]])
    world.reward = torch.tensor([[1.0, 0], [1, 1], [100, 100]], dtype=torch.float64)
    world.terminates = torch.tensor([[True, False], [False, False], [False, False]])
    value = torch.tensor([0.0, 0, 1000])
    for discount, best in ((0.3, 0), (0.7, 1)):  # return of action 1: 3 / 7, or 7 / 3
        value[1] = 1 / (1 - discount)
        result = SEARCHES[kind](100, tree=tree).plan(world, torch.tensor([0]), discount, lambda s: value[s])
        assert result.action.item() == best
        assert result.value.item() == pytest.approx((1, 7 / 3)[best], abs=0.2)


@pytest.mark.parametrize("tree", ["host", "device"])
@pytest.mark.parametrize("kind", list(SEARCHES))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_results_do_not_depend_on_the_batch_and_visits_sum_to_the_simulations(kind, temperature, tree):
    model, states, seeds = TabularModel(TabularWorld(actions=5)), torch.arange(6), world_seeds(3, 6)
    search = SEARCHES[kind](23, tree=tree)
    batched = search.search(model, states, 0.9, seeds, temperature)
    assert batched.visits.sum(1).tolist() == [23] * 6
    torch.testing.assert_close(batched.policy.sum(1), torch.ones(6))
    for i in range(6):
        alone = search.search(model, states[i : i + 1], 0.9, seeds[i : i + 1], temperature)
        assert all(torch.equal(a, t[i : i + 1]) for a, t in zip(alone, batched, strict=True))
    again = search.search(model, states, 0.9, world_seeds(4, 6), temperature)
    assert torch.equal(again.visits, batched.visits) == (temperature == 0)
    assert torch.equal(states, torch.arange(6))


@pytest.mark.parametrize("tree", ["host", "device"])
def test_each_node_keeps_its_own_nested_state(tree):
    """Only one of eight action sequences is rewarded, which requires the correct state at every node."""

    class BinaryTree(TabularModel):
        def predict(self, state):
            return NodePrediction(torch.zeros(len(state["node"]), 2), torch.zeros(len(state["node"])))

        def step(self, state, action):
            node = state["node"] * 2 + action
            actions = torch.cat((state["actions"][1][:, 1:], action[:, None]), dim=1)
            rewarded = (actions == torch.tensor([1, 0, 1])).all(1) & (node == 8 + 5)
            next_state = {"node": node, "actions": (state["actions"][0] + 1.0, actions)}
            return TreeStep(next_state, rewarded.float(), node >= 8, self.predict(next_state))

    state = {
        "node": torch.ones(2, dtype=torch.int64),
        "actions": (torch.zeros(2), torch.zeros(2, 3, dtype=torch.int64)),
    }
    result = PUCTSearch(200, tree=tree).search(BinaryTree(TabularWorld()), state, discount=1.0)
    assert result.action.tolist() == [1, 1] and (result.value > 0.5).all()


@pytest.mark.parametrize("kind", list(SEARCHES))
def test_trees_on_host_and_device_explore_alike(kind):
    """With noise, deep paths and terminations, and for numbers of simulations around powers of two."""
    model, states, seeds = TabularModel(TabularWorld(states=40, actions=6)), torch.arange(40), world_seeds(5, 40)
    trees = []

    class Kept(SEARCHES[kind]):
        def _decide(self, tree, *rest):
            trees.append(tree)
            return super()._decide(tree, *rest)

    for simulations in (1, 2, 3, 4, 5, 33):
        for tree in ("host", "device"):
            Kept(simulations, tree=tree).search(model, states, 0.997, seeds, temperature=1.0)
        host, device = trees[-2:]
        for name in ("visits", "q", "value", "value_count", "reward", "discount", "prior", "next_action"):
            ours, theirs = torch.as_tensor(getattr(device, name)), torch.as_tensor(getattr(host, name))
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-12, atol=1e-12, msg=name)


def test_combinations_of_choices_and_keys_are_searched():
    """The world of discrete actions, taken by a choice and a key, has the same tree."""
    world, parts = TabularWorld(actions=6), (ActionPart("choice", 3), ActionPart("keys", 1))
    composite = TabularWorld(actions=6)
    composite.spec = replace(world.spec, actions=ActionSpace.composite(*parts))
    step = composite.step
    composite.check_action = lambda action, batch: None
    composite.step = lambda state, action, decode=True: step(state, (2 * action[:, 0] + action[:, 1]).long(), decode)
    plain, combined = (GumbelMuZeroSearch(32).plan(w, torch.arange(7), 0.9) for w in (world, composite))
    assert all(torch.equal(*pair) for pair in zip(plain, combined, strict=True))
    composite.spec = replace(world.spec, actions=ActionSpace.composite(*parts, ActionPart("pointer")))
    with pytest.raises(
        ValueError, match=r"cannot be enumerated, because pointer is continuous; use a sampling planner"
    ):
        PUCTSearch().plan(composite, torch.arange(2))


def test_sequential_halving_divides_simulations_among_rounds():
    assert sequential_halving(4, 16) == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert sequential_halving(1, 4) == [0, 1, 2, 3]
    assert sequential_halving(2, 5) == [0, 0, 1, 1, 2]
    assert sequential_halving(16, 8) == [0] * 8  # too few for a second round
    for considered, simulations in ((3, 50), (5, 50), (16, 50), (16, 200), (7, 1)):
        assert len(sequential_halving(considered, simulations)) == simulations
    # 16 actions and 64 simulations: four rounds of 16, to 16, 8, 4 and 2 actions.
    schedule = sequential_halving(16, 64)
    assert schedule == [0] * 16 + [1] * 8 + [2] * 8 + [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4 + sorted(
        [*range(7, 15)] * 2
    )


def test_gumbel_visits_follow_sequential_halving():
    """In bandits with known rewards, the better half of the arms stays in each round."""
    bandits = TabularWorld(states=3, actions=8)
    bandits.terminates[:] = True
    bandits.logits[:] = 0
    result = GumbelMuZeroSearch(24, max_considered_actions=8).search(
        TabularModel(bandits), torch.arange(3), discount=0.9
    )
    for state in range(3):
        ranks = bandits.reward[state].argsort(descending=True)
        # Three rounds of 8: eight arms once, four arms twice, two arms four times.
        assert result.visits[state][ranks].tolist() == [7, 7, 3, 3, 1, 1, 1, 1]
        assert result.action[state] == ranks[0]
    few = GumbelMuZeroSearch(6, max_considered_actions=3).search(
        TabularModel(bandits), torch.arange(3), 0.9, temperature=1.0
    )
    assert ((few.visits > 0).sum(1) <= 3).all()


def test_gumbel_samples_actions_of_the_improved_policy_at_a_temperature():
    bandits = TabularWorld(states=1, actions=3)
    bandits.terminates[:] = True
    bandits.logits[:] = torch.tensor([2.0, 0, 0])
    bandits.reward[:] = 1.0  # equal rewards: the improved policy is the prior
    states = torch.zeros(4000, dtype=torch.int64)
    for temperature in (0.5, 1.0):
        result = GumbelMuZeroSearch(3).search(TabularModel(bandits), states, seed=1, temperature=temperature)
        frequencies = result.action.bincount(minlength=3) / 4000
        torch.testing.assert_close(frequencies, (torch.tensor([2.0, 0, 0]) / temperature).softmax(0), rtol=0, atol=0.03)


def test_puct_samples_actions_by_visits_and_adds_noise_at_the_root():
    bandits = TabularWorld(states=1, actions=3, seed=1)
    bandits.terminates[:] = True
    states = torch.zeros(4000, dtype=torch.int64)
    without_noise = PUCTSearch(20, dirichlet_fraction=0.0)
    greedy = without_noise.search(TabularModel(bandits), states, seed=1)
    assert len(greedy.visits.unique(dim=0)) == 1 and greedy.action.unique().tolist() == [int(greedy.visits[0].argmax())]
    for temperature in (0.5, 1.0):
        result = without_noise.search(TabularModel(bandits), states, seed=1, temperature=temperature)
        assert torch.equal(result.visits, greedy.visits)
        weights = result.visits[0].float() ** (1 / temperature)
        frequencies = result.action.bincount(minlength=3) / 4000
        torch.testing.assert_close(frequencies, weights / weights.sum(), rtol=0, atol=0.03)
    with_noise = PUCTSearch(20).search(TabularModel(bandits), states[:50], seed=1, temperature=1.0)
    assert len(with_noise.visits.unique(dim=0)) > 5


@pytest.mark.parametrize("kind", list(SEARCHES))
def test_value_differences_below_min_value_range_have_less_effect(kind):
    bandits = TabularWorld(states=1, actions=2)
    bandits.terminates[:] = True
    bandits.logits[:], bandits.values[:] = 0, 0
    preferred = []
    for difference in (1e-7, 0.001, 0.01, 1.0):
        bandits.reward[:] = torch.tensor([0.0, difference])
        result = SEARCHES[kind](30, min_value_range=0.01).search(TabularModel(bandits), torch.tensor([0]), 0.9)
        preferred.append(result.policy[0, 1].item())
    assert preferred[0] == pytest.approx(0.5, abs=1e-3) and preferred[0] < preferred[1] < preferred[2]
    assert preferred[2] == pytest.approx(preferred[3], abs=1e-3)


def test_rejects_settings_out_of_range():
    model, state = TabularModel(TabularWorld()), torch.arange(2)
    for make, message in (
        (lambda: PUCTSearch(0), "simulations must be 1 or more and min_value_range above 0, got 0"),
        (lambda: PUCTSearch(dirichlet_fraction=2.0), "dirichlet_fraction in 0..1"),
        (lambda: GumbelMuZeroSearch(max_considered_actions=0), "max_considered_actions must be 1 or more"),
        (lambda: PUCTSearch().search(model, state, discount=1.1), "discount must lie in 0..1"),
        (lambda: PUCTSearch().search(model, state, temperature=-1.0), "temperature be 0 or more"),
        (
            lambda: PUCTSearch().plan(ExactRooms(), None),
            "requires discrete actions: 2 continuous actions cannot be enumerated; use a",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
