"""What EfficientZero adds to MuZero equals references in NumPy (float64), and a run of all of it resumes exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import randomize
from muzero_agents import IMAGE_SPACES, SIZES, collect, make_agent, random_sequences

from vwm.core.seeds import world_seeds
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.nn.image_augmentation import random_intensity
from vwm.nn.value_support import ScaledSupport, inverse_value_transform, value_transform
from vwm.planning.gumbel_search import GumbelMuZeroSearch
from vwm.planning.puct_search import PUCTSearch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.muzero import MuZeroAgent, MuZeroTreeModel
from vwm.rl.algorithms.muzero_config import MuZeroAugmentation, MuZeroNetworkConfig
from vwm.rl.algorithms.muzero_targets import (
    MuZeroTargetConfig,
    corrected_td_steps,
    make_muzero_targets,
    value_prefix_targets,
)
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.rl.replay_priorities import ReplayPriorities


def test_value_prefixes_equal_sums_of_rewards_since_the_last_reset():
    reward = np.random.default_rng(0).normal(size=(7, 12))
    for horizon in (1, 5, 12, 20):
        expected = np.zeros_like(reward)
        for t in range(12):
            expected[:, t] = reward[:, t - t % horizon : t + 1].sum(1)
        ours = value_prefix_targets(torch.from_numpy(reward), horizon)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-14)


def test_corrected_returns_have_fewer_rewards_for_older_time_steps():
    """z of a time step whose n is shorter, against a loop over rewards that ends with the episode."""
    config = MuZeroTargetConfig(unroll_steps=4, td_steps=5, discount=0.9, staleness_fraction=0.2)
    reward, first, last, terminal, policy, value = random_sequences(2, 10, batch=100)
    made, total = 900, 1000
    collected = np.random.default_rng(1).integers(0, made + 1, size=(100, 5))
    td_steps = np.clip(5 - np.floor((made - collected) / (0.2 * total)), 1, 5)
    ours = corrected_td_steps(torch.from_numpy(collected), torch.tensor([made, total]), config)
    np.testing.assert_array_equal(ours.numpy(), td_steps)
    assert set(td_steps.ravel().tolist()) == {1, 2, 3, 4, 5}
    targets = make_muzero_targets(reward, first, last, terminal, policy, value, config, ours)
    for i in range(100):
        r, v = reward[i].numpy(), value[i].numpy()
        ends = [t for t in range(10) if last[i, t] or (t < 9 and first[i, t + 1])]
        end = ends[0] if ends else 99
        for k in range(5):
            stop = min(k + int(td_steps[i, k]), end)
            z = sum(0.9 ** (t - k - 1) * r[t] for t in range(k + 1, stop + 1))
            if not (stop == end and terminal[i, end]):
                z += 0.9 ** (stop - k) * v[stop]
            assert targets.value[i, k].item() == pytest.approx(z if k < end else 0.0, abs=1e-12)
    unknown = corrected_td_steps(torch.from_numpy(collected), torch.tensor([made, 0]), config)
    assert (unknown == 5).all()  # the length of the run is not known


def test_the_support_and_its_loss_equal_a_reference_in_float64():
    rng = np.random.default_rng(0)
    x = np.concatenate((rng.normal(size=40) * 30, [0.0, 1e-3, -300.0, 300.0]))
    h = np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 0.001 * x
    np.testing.assert_allclose(value_transform(torch.from_numpy(x)).numpy(), h, rtol=0, atol=1e-14)
    np.testing.assert_allclose(inverse_value_transform(torch.from_numpy(h)).numpy(), x, rtol=1e-12, atol=1e-12)
    support = ScaledSupport(20)
    weights = np.zeros((len(x), 41))
    for i, position in enumerate(np.clip(h, -20, 20) + 20):
        low = min(int(np.floor(position)), 39)
        weights[i, low] += 1 - (position - low)
        weights[i, low + 1] += position - low
    np.testing.assert_allclose(support.encode(torch.from_numpy(x)).numpy(), weights, rtol=0, atol=1e-13)
    logits = rng.normal(size=(len(x), 41))
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(weights * log_softmax).sum(1)
    loss = support.loss(torch.from_numpy(logits), torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    transformed = (np.exp(log_softmax) * np.arange(-20, 21)).sum(1)
    root = (np.sqrt(1 + 4 * 0.001 * (np.abs(transformed) + 1 + 0.001)) - 1) / (2 * 0.001)
    mean = support.mean(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(mean, np.sign(transformed) * (root**2 - 1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_consistency_loss_equals_a_reference_in_float64(layers):
    """Negative cosine of projected latents, with batch norm over the entries that count, by the formulas of SimSiam."""
    torch.manual_seed(0)
    network = make_agent(network={"projector_layers": layers, "predictor_hidden": 5}).network.double()
    predicted, observed = torch.rand(2, 9, 16, dtype=torch.float64)
    valid = torch.tensor([True] * 6 + [False] * 3)
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}

    def batch_norm(x, name):
        kept = x[valid.numpy()]
        x = (x - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"] if f"{name}.weight" in weights else x

    def project(x):
        for layer in range(layers):
            x = batch_norm(x @ weights[f"projector.{1 + 3 * layer}.weight"].T, f"projector.{2 + 3 * layer}")
            x = np.maximum(x, 0) if layer < layers - 1 else x
        return x

    ours, theirs = project(predicted.numpy()), project(observed.numpy())
    hidden = np.maximum(batch_norm(ours @ weights["predictor.0.weight"].T, "predictor.1"), 0)
    ours = hidden @ weights["predictor.3.weight"].T + weights["predictor.3.bias"]
    expected = -(ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    loss = network.consistency_loss(predicted, observed, valid).detach().numpy()
    np.testing.assert_allclose(loss[valid.numpy()], expected[valid.numpy()], rtol=0, atol=1e-12)
    everything = network.consistency_loss(predicted[:6], observed[:6]).detach().numpy()
    np.testing.assert_allclose(everything, expected[:6], rtol=0, atol=1e-12)


def test_the_loss_is_weighted_and_priorities_are_the_errors_of_the_roots_values():
    agent = make_agent(priorities=ReplayPriorities(correction=0.5, final_correction=0.5), batch_size=4)
    batch = collect(agent, agent.batch_length, num_envs=4)
    relative = torch.tensor([0.25, 1.0, 4.0, 1.0])
    batch = batch._replace(extras={**batch.extras, "relative_probability": relative})
    for _ in range(2):
        agent.update(batch)
    used = []
    agent.loss = lambda *inputs: used.append(inputs) or type(agent).loss(agent, *inputs)
    with torch.no_grad():
        state = agent.network.represent(batch.observation[:, :1])
        root_values = agent.network.value_support.mean(agent.network.predict(state.latent).value_logits)
    output = agent.update(batch)
    windows, action, targets, weight = used[0]
    torch.testing.assert_close(weight, torch.tensor([1.0, 0.5, 0.25, 0.5]))  # relative ** -0.5, at most 1
    torch.testing.assert_close(output.priorities, (root_values - targets.value[:, 0]).abs())

    def loss(weight):
        torch.manual_seed(0)  # actions after the end of an episode are drawn
        return type(agent).loss(agent, windows, action, targets, weight)[0].item()

    single, together = [loss(torch.eye(4)[i]) for i in range(4)], loss(weight)
    assert together == pytest.approx(sum(w * x for w, x in zip(weight.tolist(), single, strict=True)), rel=1e-5)


def test_targets_come_from_a_copy_of_the_network_that_is_renewed_at_intervals():
    config = MuZeroTargetConfig(reanalyze_fraction=0.5, bootstrap_from_network=True, target_interval=3)
    agent = make_agent(targets=config)
    batch = collect(agent, agent.batch_length)
    used = []
    agent.loss = lambda *inputs: used.append(inputs[2]) or type(agent).loss(agent, *inputs)
    for update in range(1, 7):
        copy = agent.target_network.state_dict() if update in (2, 5) else {}
        copy = {name: value.clone() for name, value in copy.items()}
        with torch.no_grad():
            state = agent.target_network.represent(batch.observation.flatten(0, 1)[:, None])
            values = agent.network.value_support.mean(agent.target_network.predict(state.latent).value_logits)
            model = MuZeroTreeModel(agent.target_network)
            searched = agent.search.search(model, state, config.discount)
        output = agent.update(batch)
        half = agent.batch_length
        torch.testing.assert_close(output.extras["policy"][0], searched.policy[:half])
        expected = torch.stack((searched.value[:half], values[half:]))
        flags = (batch.reward, batch.is_first, batch.is_last, batch.is_terminal, batch.extras["policy"])
        torch.testing.assert_close(used[-1].value, make_muzero_targets(*flags, expected, config).value)
        same = all(map(torch.equal, agent.network.parameters(), agent.target_network.parameters()))
        assert same == (update % 3 == 0)
        assert all(torch.equal(agent.target_network.state_dict()[name], value) for name, value in copy.items())
    assert not any(weight.requires_grad for weight in agent.target_network.parameters())


def test_images_are_shifted_and_their_intensities_scaled():
    torch.manual_seed(0)
    frames = torch.full((500, 2, 4, 4, 3), 100, dtype=torch.uint8)
    scaled = random_intensity(frames, 0.05)
    factors = scaled[:, 0, 0, 0, 0] / 100
    assert torch.equal(scaled, scaled[:, :1, :1, :1, :1].expand_as(scaled))  # one factor for a stack
    assert factors.min() >= 0.9 - 1e-6 and factors.max() <= 1.1 + 1e-6 and 0.03 < factors.std() < 0.06
    vectors = torch.rand(3, 2, 5)
    assert MuZeroAugmentation(4, 0.05)(vectors) is vectors and MuZeroAugmentation()(frames) is frames
    agent = make_agent(IMAGE_SPACES, augmentation=MuZeroAugmentation(2, 0.05))
    represented = []
    represent = agent.network.represent
    agent.network.represent = lambda windows: represented.append(windows) or represent(windows)
    batch = collect(agent, agent.batch_length)
    represented.clear()
    agent.update(batch)
    roots, observed = represented  # of the unrolled latents, and of the consistency loss
    assert roots.is_floating_point() and observed.is_floating_point()
    assert not torch.equal(roots, batch.observation[:, :1].float())


def test_rewards_can_be_learned_as_signs():
    agent = make_agent(targets=MuZeroTargetConfig(sign_rewards=True))
    used = []
    agent.loss = lambda *inputs: used.append(inputs[2].reward) or type(agent).loss(agent, *inputs)
    batch = collect(agent, agent.batch_length)
    agent.update(batch._replace(reward=batch.reward * 7 - 3))
    assert set(used[0].unique().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("tree", ["host", "device"])
def test_a_batched_search_from_pixels_equals_single_ones_in_float64(tree):
    network = {"num_stacked_frames": 2, "image_network": "pooled", "prediction_blocks": 1, "value_prefix_horizon": 2}
    agent = make_agent(IMAGE_SPACES, network=network)
    randomize(agent.network).double()
    windows = torch.randint(0, 256, (5, 2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    seeds, model = world_seeds(7, 5), MuZeroTreeModel(agent.network)
    for search in (GumbelMuZeroSearch(12, tree=tree), PUCTSearch(12, tree=tree)):
        batched = search.search(model, agent.network.represent(windows), 0.97, seeds, temperature=1.0)
        assert len(batched.visits.unique(dim=0)) > 1
        for i in range(5):
            state = agent.network.represent(windows[i : i + 1])
            alone = search.search(model, state, 0.97, seeds[i : i + 1], temperature=1.0)
            assert torch.equal(alone.visits, batched.visits[i : i + 1]) and alone.action == batched.action[i]
            torch.testing.assert_close(alone.policy, batched.policy[i : i + 1], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(alone.value, batched.value[i : i + 1], rtol=1e-6, atol=1e-7)


def make_training(run: Path, **settings) -> AgentTraining:
    """EfficientZero with all of its parts on CartPole."""

    def agent(spaces):
        return MuZeroAgent(
            spaces,
            GumbelMuZeroSearch(2),
            MuZeroNetworkConfig(num_stacked_frames=2, **{**SIZES, "width": 8}),
            MuZeroTargetConfig(
                unroll_steps=2,
                td_steps=2,
                bootstrap_from_network=True,
                reanalyze_fraction=0.5,
                target_interval=3,
                staleness_fraction=0.3,
            ),
            batch_size=4,
            priorities=ReplayPriorities(),
        )

    learning = OnlineLearning(
        GymnasiumEnvSpec("CartPole-v1"), agent, num_envs=2, prefill=16, updates_per_decision=0.25, replay_capacity=40
    )
    evaluation = EvaluationConfig(every=1000, episodes=1, video=False)
    return AgentTraining(run, learning, **{"steps": 64, "checkpoint_every": 32, "evaluation": evaluation, **settings})


@pytest.mark.usefixtures("no_curves")
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path):
    """Also its priorities, the target network, and when each time step was collected."""
    make_training(tmp_path / "whole").run()
    interrupted = make_training(tmp_path / "halves")
    interrupted.set_up()
    while interrupted.algorithm.progress < 32:
        interrupted.algorithm.step()
    interrupted.save()
    make_training(tmp_path / "halves").run()
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=False) for name in ("whole", "halves")]
    whole, halves = (state["algorithm"] for state in states)
    assert whole["policy"]["updates"].tolist()[0] == 12
    different = [name for name, value in whole["policy"].items() if not torch.equal(value, halves["policy"][name])]
    assert not different
    assert torch.equal(whole["replay"]["priorities"]["leaves"], halves["replay"]["priorities"]["leaves"])
    assert whole["replay"]["priorities"]["highest"] == halves["replay"]["priorities"]["highest"]
