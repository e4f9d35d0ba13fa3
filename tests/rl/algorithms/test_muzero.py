"""The agent: what it sees, what it stores, what its loss is made of, and that learning and saving work."""

from __future__ import annotations

import copy

import pytest
import torch
from factories import randomize
from torch import Tensor

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.puct_search import PUCTSearch
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.muzero import MuZeroAgent, MuZeroTreeModel, scale_latent_gradient
from vwm.rl.algorithms.muzero_targets import make_muzero_targets
from vwm.rl.frame_stacking import stack_frames

SPACES = EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("discrete", 2))
SIZES = {"width": 16, "hidden": 16, "support": 8, "prefix_hidden": 8, "projection": 8}


def agent(spaces: EnvSpaces = SPACES, **changes) -> MuZeroAgent:
    torch.manual_seed(0)
    settings = {"search": GumbelMuZeroSearch(4), "batch_size": 6, **SIZES}
    return MuZeroAgent(spaces, **{**settings, **changes})


def moments(steps: int, count: int = 2, spaces: EnvSpaces = SPACES, length: int = 4) -> list[TimeStep]:
    """Episodes of some moments; the last ones are terminal in the first environment."""
    g = torch.Generator().manual_seed(3)
    found = []
    for t in range(steps):
        shape = (count, *spaces.observation.shape)
        seen = (
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
            if spaces.observation.is_image
            else torch.randn(shape, generator=g)
        )
        last = torch.tensor([t % length == length - 1] * count)
        found.append(
            TimeStep(
                seen,
                torch.rand(count, generator=g),
                torch.tensor([t % length == 0] * count),
                last,
                last & (torch.arange(count) == 0),
            )
        )
    return found


def played(mind: MuZeroAgent, steps: int, count: int = 2) -> ReplayBatch:
    """A batch of the moments and what the agent did."""
    carry, done = mind.init_carry(count), []
    shown = moments(steps, count, mind.spaces)
    for time_step in shown:
        acted = mind.act(carry, time_step, explore=True)
        carry = acted.carry
        done.append(acted)
    together = TimeStep(*(torch.stack(x, 1) for x in zip(*shown, strict=True)))
    extras = {name: torch.stack([a.extras[name] for a in done], 1) for name in mind.extras}
    indices = torch.arange(count * steps).view(count, steps)
    return ReplayBatch(*together, torch.stack([a.action for a in done], 1), extras, indices)


PICTURES = EnvSpaces(ObservationSpace.of_shape((32, 32, 3)), ActionSpace("discrete", 3))


@pytest.mark.parametrize("kind", ["vectors", "stacked vectors", "pictures"])
def test_it_acts_stores_what_the_search_found_and_updates(kind):
    mind = agent(PICTURES if kind == "pictures" else SPACES, frames=1 if kind == "vectors" else 3)
    randomize(mind.network)
    actions = mind.spaces.actions.size
    batch = played(mind, mind.batch_length)
    assert batch.action.dtype == torch.int64 and int(batch.action.max()) < actions
    policy = batch.extras["policy"]
    assert policy.shape == (2, mind.batch_length, actions) and batch.extras["value"].shape == (2, mind.batch_length)
    for name, (shape, dtype) in mind.extras.items():
        assert batch.extras[name].shape[2:] == shape and batch.extras[name].dtype == dtype
    torch.testing.assert_close(policy.sum(-1), torch.ones(2, mind.batch_length))
    before = copy.deepcopy(mind.network.state_dict())
    updated = mind.update(batch)
    assert {"loss", "loss_policy", "loss_value", "loss_reward", "loss_consistency"} <= set(updated.logs)
    assert not updated.extras and mind.updates[0] == 1
    after = mind.network.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still, still


@pytest.mark.parametrize("frames", [1, 3])
def test_replay_shows_what_was_seen_in_play(frames):
    """The carry of acting and the stack from replay are the same, also where an episode begins."""
    mind, seen = agent(frames=frames), []
    mind.look = lambda x, temperature: seen.append(x) or type(mind).look(mind, x, temperature)
    batch = played(mind, 9)
    stacked = stack_frames(batch.observation, batch.is_first, frames)
    assert stacked.shape == (2, 9 - frames + 1, frames, 3)
    assert torch.equal(stacked, torch.stack(seen, 1)[:, frames - 1 :])
    assert torch.equal(stacked[:, 4 - frames + 1], batch.observation[:, 4:5].expand(-1, frames, -1))  # at is_first


@torch.no_grad()
def slow_loss(mind: MuZeroAgent, batch: ReplayBatch) -> float:
    """Of pieces in one episode: by the formula, one piece and one step at a time."""
    net, total, predicted, observed = mind.network, 0.0, [], []
    for i in range(len(batch.reward)):
        value, reward = batch.extras["value"][i].tolist(), batch.reward[i].tolist()
        state = net.represent(batch.observation[i : i + 1, 0:1])
        summed = 0.0
        for k in range(mind.unroll + 1):
            weight = 1.0 if k == 0 else 1 / mind.unroll
            if k:
                state, _, logits = net.step(state, batch.action[i : i + 1, k - 1])
                if mind.network.value_prefix_horizon and (k - 1) % net.value_prefix_horizon == 0:
                    summed = 0.0
                summed = summed + reward[k] if net.value_prefix_horizon else reward[k]
                total += weight * net.value_support.loss(logits[0], torch.tensor(summed)).item()
                predicted.append(state.latent)
                observed.append(net.represent(batch.observation[i : i + 1, k : k + 1]).latent)
            z = sum(mind.discount ** (j - 1) * reward[k + j] for j in range(1, mind.td + 1))
            z += mind.discount**mind.td * value[k + mind.td]
            policy, values = net.predict(state.latent)
            total += weight * mind.value_weight * net.value_support.loss(values[0], torch.tensor(z)).item()
            total -= weight * float((batch.extras["policy"][i, k] * policy[0].log_softmax(0)).sum())
    agreed = net.consistency_loss(torch.cat(predicted), torch.cat(observed)).mean().item()
    return total / len(batch.reward) + mind.consistency_weight * agreed


@pytest.mark.parametrize("value_prefix", [0, 2])
def test_the_loss_is_the_papers(value_prefix):
    mind = agent(value_prefix=value_prefix, unroll=4, td=2, discount=0.9)
    batch = played(mind, 7)
    flags = {name: torch.zeros(2, 7, dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")}
    batch = batch._replace(**flags)
    for _ in range(3):
        mind.update(batch)  # away from zero
    expected = slow_loss(mind, batch)
    assert mind.update(batch).logs["loss"] == pytest.approx(expected, rel=1e-4)


def test_what_is_masked_has_no_gradient_and_actions_after_an_end_are_drawn():
    mind = agent()
    batch = played(mind, mind.batch_length)
    for _ in range(2):
        mind.update(batch)
    wanted = make_muzero_targets(*batch[1:5], batch.extras["policy"], batch.extras["value"], 5, 5, 0.9)
    seen = stack_frames(batch.observation, batch.is_first, 1)

    def loss(action: Tensor, seen: Tensor, seed: int, rows: slice) -> float:
        torch.manual_seed(seed)
        masks = {n: getattr(wanted, n).clone() for n in ("value_mask", "policy_mask", "reward_mask", "observed")}
        for mask in masks.values():
            mask[: rows.start] = 0
            mask[rows.stop :] = 0
        return mind.loss(seen, action, wanted._replace(**masks))[0].item()

    other = batch.action.clone()
    other[:, 3:] = 1 - other[:, 3:]  # the episode is over at moment 3
    unseen = seen.clone()
    unseen[:, 4:] += 1
    for rows in (slice(0, 1), slice(1, 2)):  # terminal, and cut off
        base = loss(batch.action[:, :5], seen, 0, rows)
        assert loss(other[:, :5], unseen, 0, rows) == base
        redrawn = {loss(batch.action[:, :5], seen, seed, rows) for seed in range(6)}
        assert (len(redrawn) > 1) == (rows.start == 0)  # only after a true end is anything asked of drawn actions


def test_reanalysis_renews_a_share_of_the_pieces_with_the_present_network():
    mind = agent(reanalyse=0.5, search=PUCTSearch(6))
    batch = played(mind, mind.batch_length)
    stale = {name: torch.full_like(kept, 0.5) for name, kept in batch.extras.items()}
    with torch.no_grad():
        seen = batch.observation[:1].flatten(0, 1)[:, None]
        state = mind.network.represent(seen)
        expected = mind.search.search(MuZeroTreeModel(mind.network), state, mind.discount)
    _, renewed, indices = mind.update(batch._replace(extras=stale))
    torch.testing.assert_close(renewed["policy"], expected.policy[None])
    torch.testing.assert_close(renewed["value"], expected.value[None])
    assert indices is not None and torch.equal(indices, batch.indices[:1])  # what was not searched stays as it is
    assert (stale["value"] == 0.5).all()


@pytest.mark.parametrize("reanalyse", [0.0, 0.5])
def test_fresh_values_are_the_present_networks(reanalyse):
    mind = agent(bootstrap_from_network=True, reanalyse=reanalyse, search=PUCTSearch(6))
    batch = played(mind, mind.batch_length)
    for _ in range(3):
        mind.update(batch)
    told = []
    mind.loss = lambda seen, action, wanted: told.append(wanted) or type(mind).loss(mind, seen, action, wanted)
    with torch.no_grad():
        state = mind.network.represent(batch.observation.flatten(0, 1)[:, None])
        values = mind.network.value_support.mean(mind.network.predict(state.latent).value_logits).view(2, -1)
        searched = mind.search.search(MuZeroTreeModel(mind.network), state, mind.discount).value.view(2, -1)
    if reanalyse:
        values[0] = searched[0]
    found = mind.update(batch)
    wanted = make_muzero_targets(*batch[1:5], batch.extras["policy"], values, 5, 5, mind.discount)
    torch.testing.assert_close(told[0].value, wanted.value)
    assert bool(found.extras) == bool(reanalyse)


def test_it_cools_down_and_its_rate_follows_the_schedule():
    mind = agent(optimizer=OptimizerConfig(name="momentum", lr=0.2, warmup=0, schedule="linear"))
    batch = played(mind, mind.batch_length)
    assert mind.temperature == 1.0
    mind.set_total_updates(4)
    seen = []
    for _ in range(4):
        seen.append((mind.temperature, mind.update(batch) and mind.optimizer.param_groups[0]["lr"]))
    assert [t for t, _ in seen] == [1.0, 1.0, 0.5, 0.25]
    assert [rate for _, rate in seen] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_without_exploring_it_draws_nothing():
    mind, time_step = agent(), moments(1)[0]
    quiet = [mind.act(mind.init_carry(2), time_step, explore=False).extras["policy"] for _ in range(3)]
    assert all(torch.equal(quiet[0], other) for other in quiet)
    crowd = TimeStep(*(x[:1].expand(200, *x.shape[1:]) for x in time_step))
    assert len(mind.act(mind.init_carry(200), crowd, explore=False).action.unique()) == 1
    assert len(mind.act(mind.init_carry(200), crowd, explore=True).action.unique()) == 2


def test_a_resumed_agent_learns_as_an_unbroken_one():
    first = agent(reanalyse=0.5)
    batch = played(first, first.batch_length)
    first.set_total_updates(10)
    first.update(batch)
    second = agent()
    second.load_state_dict(first.state_dict())
    second.reanalyse = first.reanalyse
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for mind in (first, second):
        torch.manual_seed(1)
        mind.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.temperature == second.temperature and second.updates.tolist() == [2, 10]


def test_it_learns_values_and_policy_of_a_bandit():
    """One step, at random: action 1 pays 1, so that the moment before is worth a half; the search would do better."""
    mind = agent(optimizer=OptimizerConfig(name="adamw", lr=1e-2, betas=(0.9, 0.999), warmup=0), unroll=1, td=1)
    g = torch.Generator().manual_seed(0)
    first, last = torch.tensor([True, False, True]).expand(32, 3), torch.tensor([False, True, False]).expand(32, 3)
    indices, still = torch.arange(96).view(32, 3), torch.zeros(32)
    time_step = TimeStep(torch.ones(32, 3), still, first[:, 0], last[:, 0], last[:, 0])
    for _ in range(180):
        acted, action = (
            mind.act(mind.init_carry(32), time_step, explore=True),
            torch.randint(0, 2, (32, 3), generator=g),
        )
        paid = action[:, 0].float()
        there = torch.stack((paid, 1 - paid, paid), 1)
        observation = torch.stack((time_step.observation, there, time_step.observation), 1)
        extras = {name: torch.stack([x] * 3, 1) for name, x in acted.extras.items()}
        reward = torch.stack((still, paid, still), 1)
        mind.update(ReplayBatch(observation, reward, first, last, last, action, extras, indices))
    net, state = mind.network, mind.network.represent(time_step.observation[:1, None])
    rewards = [net.step(state, torch.tensor([a])).reward.item() for a in range(2)]
    assert rewards == pytest.approx([0, 1], abs=0.15)
    prediction = net.predict(state.latent)
    assert net.value_support.mean(prediction.value_logits).item() == pytest.approx(0.5, abs=0.15)
    assert prediction.policy_logits.softmax(-1)[0, 1] > 0.9
    assert (mind.act(mind.init_carry(32), time_step, explore=False).action == 1).all()


def test_gradients_are_halved():
    x = torch.ones(3, requires_grad=True)
    y = scale_latent_gradient(x)
    y.sum().backward()
    assert torch.equal(y, x) and x.grad.tolist() == [0.5] * 3


def test_wrong_settings_are_named_and_a_broken_loss_stops():
    continuous = EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("continuous", 2))
    for make, message in (
        (lambda: agent(continuous), "MuZero needs discrete actions, and these are continuous"),
        (lambda: agent(unroll=0), "unroll and td must be 1 or more"),
        (lambda: agent(temperatures=(1.0,)), "one more than cooling"),
        (lambda: agent(optimizer=OptimizerConfig(warmup=0, final_weight_decay=0.1)), "final_weight_decay"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    mind = agent()
    batch = played(mind, mind.batch_length)
    before = {name: value.clone() for name, value in mind.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"^loss is nan, loss_value is nan"):
        mind.update(batch._replace(reward=batch.reward * float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in mind.state_dict().items())
