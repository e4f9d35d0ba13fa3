"""MuZero's agent: stacked observations, stored search results, the loss, reanalysis, learning and resuming."""

from __future__ import annotations

import copy

import pytest
import torch
from factories import randomize
from muzero_agents import IMAGE_SPACES, SPACES, collect, make_agent, make_time_steps
from torch import Tensor

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.nn.optimizer import OptimizerConfig
from vwm.planning.puct_search import PUCTSearch
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.muzero import MuZeroAgent, MuZeroTreeModel, scale_latent_gradient
from vwm.rl.algorithms.muzero_config import MuZeroLossWeights, MuZeroNetworkConfig, MuZeroTemperatureSchedule
from vwm.rl.algorithms.muzero_targets import MuZeroTargetConfig, make_muzero_targets
from vwm.rl.frame_stacking import stack_frames


@pytest.mark.parametrize("kind", ["vectors", "stacked vectors", "images"])
def test_acts_stores_search_results_and_updates_every_weight(kind):
    frames = {"num_stacked_frames": 1 if kind == "vectors" else 3}
    agent = make_agent(IMAGE_SPACES if kind == "images" else SPACES, network=frames)
    randomize(agent.network)
    actions = agent.spaces.actions.size
    batch = collect(agent, agent.batch_length)
    assert batch.action.dtype == torch.int64 and int(batch.action.max()) < actions
    policy = batch.extras["policy"]
    assert policy.shape == (2, agent.batch_length, actions) and batch.extras["value"].shape == (2, agent.batch_length)
    for name, (shape, dtype) in agent.extras.items():
        assert batch.extras[name].shape[2:] == shape and batch.extras[name].dtype == dtype
    torch.testing.assert_close(policy.sum(-1), torch.ones(2, agent.batch_length))
    before = copy.deepcopy(agent.network.state_dict())
    output = agent.update(batch)
    assert {"loss", "loss_policy", "loss_value", "loss_reward", "loss_consistency"} <= set(output.logs)
    assert not output.extras and agent.updates[0] == 1
    after = agent.network.state_dict()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged, unchanged


@pytest.mark.parametrize("frames", [1, 3])
def test_acting_and_replay_stack_the_same_observations(frames):
    """The carry of acting and the stack from replay are the same, also at the first step of an episode."""
    agent, windows = make_agent(network={"num_stacked_frames": frames}), []
    agent.run_search = lambda x, temperature: windows.append(x) or type(agent).run_search(agent, x, temperature)
    batch = collect(agent, 9)
    stacked = stack_frames(batch.observation, batch.is_first, frames)
    assert stacked.shape == (2, 9 - frames + 1, frames, 3)
    assert torch.equal(stacked, torch.stack(windows, 1)[:, frames - 1 :])
    assert torch.equal(stacked[:, 4 - frames + 1], batch.observation[:, 4:5].expand(-1, frames, -1))  # at is_first


@torch.no_grad()
def reference_loss(agent: MuZeroAgent, batch: ReplayBatch) -> float:
    """Loss of sequences within one episode by the papers' formula, one sequence and one step at a time."""
    network, config, weights = agent.network, agent.target_config, agent.loss_weights
    total, predicted, observed = 0.0, [], []
    for i in range(len(batch.reward)):
        value, reward = batch.extras["value"][i].tolist(), batch.reward[i].tolist()
        state = network.represent(batch.observation[i : i + 1, 0:1])
        prefix = 0.0
        for k in range(config.unroll_steps + 1):
            step_weight = 1.0 if k == 0 else 1 / config.unroll_steps
            if k:
                state, _, logits = network.step(state, batch.action[i : i + 1, k - 1])
                if network.value_prefix_horizon and (k - 1) % network.value_prefix_horizon == 0:
                    prefix = 0.0
                prefix = prefix + reward[k] if network.value_prefix_horizon else reward[k]
                total += step_weight * network.value_support.loss(logits[0], torch.tensor(prefix)).item()
                predicted.append(state.latent)
                observed.append(network.represent(batch.observation[i : i + 1, k : k + 1]).latent)
            z = sum(config.discount ** (j - 1) * reward[k + j] for j in range(1, config.td_steps + 1))
            z += config.discount**config.td_steps * value[k + config.td_steps]
            policy, values = network.predict(state.latent)
            total += step_weight * weights.value * network.value_support.loss(values[0], torch.tensor(z)).item()
            total -= step_weight * float((batch.extras["policy"][i, k] * policy[0].log_softmax(0)).sum())
    consistency = network.consistency_loss(torch.cat(predicted), torch.cat(observed)).mean().item()
    return total / len(batch.reward) + weights.consistency * consistency


@pytest.mark.parametrize("value_prefix_horizon", [0, 2])
def test_loss_equals_the_reference(value_prefix_horizon):
    agent = make_agent(
        network={"value_prefix_horizon": value_prefix_horizon},
        targets=MuZeroTargetConfig(unroll_steps=4, td_steps=2, discount=0.9),
    )
    batch = collect(agent, 7)
    flags = {name: torch.zeros(2, 7, dtype=torch.bool) for name in ("is_first", "is_last", "is_terminal")}
    batch = batch._replace(**flags)
    for _ in range(3):
        agent.update(batch)  # the initial predictions are 0
    expected = reference_loss(agent, batch)
    assert agent.update(batch).logs["loss"] == pytest.approx(expected, rel=1e-4)


def test_masked_targets_do_not_change_the_loss_and_actions_after_the_end_are_drawn_at_random():
    agent = make_agent()
    batch = collect(agent, agent.batch_length)
    for _ in range(2):
        agent.update(batch)
    targets = make_muzero_targets(
        *batch[1:5], batch.extras["policy"], batch.extras["value"], MuZeroTargetConfig(discount=0.9)
    )
    windows = stack_frames(batch.observation, batch.is_first, 1)

    def loss(action: Tensor, windows: Tensor, seed: int, rows: slice) -> float:
        torch.manual_seed(seed)
        names = ("value_mask", "policy_mask", "reward_mask", "observation_mask")
        masks = {name: getattr(targets, name).clone() for name in names}
        for mask in masks.values():
            mask[: rows.start] = 0
            mask[rows.stop :] = 0
        return agent.loss(windows, action, targets._replace(**masks))[0].item()

    other_action = batch.action.clone()
    other_action[:, 3:] = 1 - other_action[:, 3:]  # the episode ends at time step 3
    other_windows = windows.clone()
    other_windows[:, 4:] += 1
    for rows in (slice(0, 1), slice(1, 2)):  # terminated, truncated
        base = loss(batch.action[:, :5], windows, 0, rows)
        assert loss(other_action[:, :5], other_windows, 0, rows) == base
        losses = {loss(batch.action[:, :5], windows, seed, rows) for seed in range(6)}
        assert (len(losses) > 1) == (rows.start == 0)  # only a terminated episode has targets for random actions


def test_reanalysis_searches_a_fraction_of_the_sequences_with_the_current_network():
    agent = make_agent(targets=MuZeroTargetConfig(reanalyze_fraction=0.5), search=PUCTSearch(6))
    batch = collect(agent, agent.batch_length)
    stale = {name: torch.full_like(stored, 0.5) for name, stored in batch.extras.items()}
    with torch.no_grad():
        state = agent.network.represent(batch.observation[:1].flatten(0, 1)[:, None])
        expected = agent.search.search(MuZeroTreeModel(agent.network), state, agent.target_config.discount)
    _, extras, indices, _ = agent.update(batch._replace(extras=stale))
    torch.testing.assert_close(extras["policy"], expected.policy[None])
    torch.testing.assert_close(extras["value"], expected.value[None])
    assert indices is not None and torch.equal(indices, batch.indices[:1])  # the other sequences keep their extras
    assert (stale["value"] == 0.5).all()


@pytest.mark.parametrize("reanalyze_fraction", [0.0, 0.5])
def test_bootstrap_from_network_takes_the_current_networks_values(reanalyze_fraction):
    config = MuZeroTargetConfig(bootstrap_from_network=True, reanalyze_fraction=reanalyze_fraction)
    agent = make_agent(targets=config, search=PUCTSearch(6))
    batch = collect(agent, agent.batch_length)
    for _ in range(3):
        agent.update(batch)
    used = []
    agent.loss = lambda windows, action, targets, weight: (
        used.append(targets) or type(agent).loss(agent, windows, action, targets, weight)
    )
    with torch.no_grad():
        state = agent.network.represent(batch.observation.flatten(0, 1)[:, None])
        values = agent.network.value_support.mean(agent.network.predict(state.latent).value_logits).view(2, -1)
        searched = agent.search.search(MuZeroTreeModel(agent.network), state, config.discount).value.view(2, -1)
    if reanalyze_fraction:
        values[0] = searched[0]
    output = agent.update(batch)
    expected = make_muzero_targets(*batch[1:5], batch.extras["policy"], values, config)
    torch.testing.assert_close(used[0].value, expected.value)
    assert bool(output.extras) == bool(reanalyze_fraction)


def test_temperature_and_learning_rate_follow_their_schedules():
    agent = make_agent(optimizer=OptimizerConfig(name="momentum", lr=0.2, warmup=0, schedule="linear"))
    batch = collect(agent, agent.batch_length)
    assert agent.temperature == 1.0
    agent.set_total_updates(4)
    history = []
    for _ in range(4):
        history.append((agent.temperature, agent.update(batch) and agent.optimizer.param_groups[0]["lr"]))
    assert [temperature for temperature, _ in history] == [1.0, 1.0, 0.5, 0.25]
    assert [lr for _, lr in history] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_acting_is_deterministic_without_exploration():
    agent, time_step = make_agent(), make_time_steps(1)[0]
    policies = [agent.act(agent.init_carry(2), time_step, explore=False).extras["policy"] for _ in range(3)]
    assert all(torch.equal(policies[0], other) for other in policies)
    repeated = TimeStep(*(x[:1].expand(200, *x.shape[1:]) for x in time_step))
    assert len(agent.act(agent.init_carry(200), repeated, explore=False).action.unique()) == 1
    assert len(agent.act(agent.init_carry(200), repeated, explore=True).action.unique()) == 2


def test_a_resumed_agent_learns_as_an_uninterrupted_one():
    config = MuZeroTargetConfig(reanalyze_fraction=0.5)
    first, second = make_agent(targets=config), make_agent(targets=config)
    batch = collect(first, first.batch_length)
    first.set_total_updates(10)
    first.update(batch)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    for agent in (first, second):
        torch.manual_seed(1)
        agent.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.temperature == second.temperature and second.updates.tolist() == [2, 10]


def test_learns_values_and_policy_of_a_bandit():
    """One random step; action 1 has reward 1, so the value before it is 0.5, while the search prefers action 1."""
    agent = make_agent(
        optimizer=OptimizerConfig(name="adamw", lr=1e-2, betas=(0.9, 0.999), warmup=0),
        targets=MuZeroTargetConfig(unroll_steps=1, td_steps=1),
    )
    generator = torch.Generator().manual_seed(0)
    is_first = torch.tensor([True, False, True]).expand(32, 3)
    is_last = torch.tensor([False, True, False]).expand(32, 3)
    indices, zeros = torch.arange(96).view(32, 3), torch.zeros(32)
    start = TimeStep(torch.ones(32, 3), zeros, is_first[:, 0], is_last[:, 0], is_last[:, 0])
    for _ in range(180):
        policy_step = agent.act(agent.init_carry(32), start, explore=True)
        action = torch.randint(0, 2, (32, 3), generator=generator)
        step_reward = action[:, 0].float()
        end = torch.stack((step_reward, 1 - step_reward, step_reward), 1)
        observation = torch.stack((start.observation, end, start.observation), 1)
        extras = {name: torch.stack([x] * 3, 1) for name, x in policy_step.extras.items()}
        reward = torch.stack((zeros, step_reward, zeros), 1)
        agent.update(ReplayBatch(observation, reward, is_first, is_last, is_last, action, extras, indices))
    network, state = agent.network, agent.network.represent(start.observation[:1, None])
    rewards = [network.step(state, torch.tensor([action])).reward.item() for action in range(2)]
    assert rewards == pytest.approx([0, 1], abs=0.15)
    prediction = network.predict(state.latent)
    assert network.value_support.mean(prediction.value_logits).item() == pytest.approx(0.5, abs=0.15)
    assert prediction.policy_logits.softmax(-1)[0, 1] > 0.9
    assert (agent.act(agent.init_carry(32), start, explore=False).action == 1).all()


def test_latent_gradients_are_halved():
    x = torch.ones(3, requires_grad=True)
    y = scale_latent_gradient(x)
    y.sum().backward()
    assert torch.equal(y, x) and x.grad.tolist() == [0.5] * 3


def test_rejects_settings_out_of_range():
    continuous = EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("continuous", 2))
    for make, message in (
        (lambda: make_agent(continuous), "MuZero requires discrete actions, and these are continuous"),
        (lambda: MuZeroTargetConfig(unroll_steps=0), "unroll_steps must be 1 or more, got 0"),
        (lambda: MuZeroTargetConfig(reanalyze_fraction=1.5), r"reanalyze_fraction must lie in 0\.\.1, got 1\.5"),
        (lambda: MuZeroNetworkConfig(width=0), "width must be 1 or more, got 0"),
        (lambda: MuZeroNetworkConfig(value_prefix_horizon=-1), "value_prefix_horizon must be 0"),
        (lambda: MuZeroLossWeights(value=-1.0), r"the loss weight value must be 0 or more, got -1\.0"),
        (lambda: MuZeroTemperatureSchedule(temperatures=(1.0,)), "one more than milestones"),
        (lambda: MuZeroTemperatureSchedule(milestones=(0.75, 0.5)), "milestones must rise"),
        (lambda: make_agent(optimizer=OptimizerConfig(warmup=0, final_weight_decay=0.1)), "final_weight_decay"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_non_finite_loss_stops_before_the_update():
    agent = make_agent()
    batch = collect(agent, agent.batch_length)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"^loss is nan, loss_value is nan"):
        agent.update(batch._replace(reward=batch.reward * float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
