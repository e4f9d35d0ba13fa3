"""TD-MPC2: losses against a step-by-step reference in float64, acting, updates and resuming."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from factories import randomize

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.agent import ReplayBatch
from vwm.rl.algorithms.tdmpc2 import (
    TDMPC2,
    TDMPC2DistributionConfig,
    TDMPC2NetworkConfig,
    TDMPC2OptimizerConfig,
    discount_for_episode_length,
)
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2PlannerConfig
from vwm.rl.optimizer_step import backward_and_step

SMALL = TDMPC2NetworkConfig(encoder_width=16, latent_size=16, width=16, num_q=3, image_channels=4)
DISTRIBUTIONS = TDMPC2DistributionConfig(num_bins=21, symlog_limit=5.0)
PLANNING = TDMPC2PlannerConfig(horizon=3, samples=12, elites=4, proposals=3, iterations=2)


def make_agent(observation: tuple[int, ...] = (3,), random_weights: bool = True, **changes) -> TDMPC2:
    torch.manual_seed(0)
    settings = {
        "episode_length": 100,
        "networks": SMALL,
        "distributions": DISTRIBUTIONS,
        "planning": PLANNING,
        "batch_size": 6,
    }
    agent = TDMPC2(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("continuous", 2)), **{**settings, **changes}
    )
    if random_weights:
        randomize(agent)
        agent.target_critic.load_state_dict(agent.critic.state_dict())
        with torch.no_grad():
            for p in agent.target_critic.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return agent


def make_batch(agent: TDMPC2, seed: int = 1, ends: bool = True) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)
    b, t, shape = agent.batch_size, agent.batch_length, agent.spaces.observation.shape
    if agent.spaces.observation.is_image:
        observation = torch.randint(0, 256, (b, t, *shape), dtype=torch.uint8, generator=generator)
    else:
        observation = torch.randn(b, t, *shape, generator=generator)
    false, last = torch.zeros(b, t, dtype=torch.bool), torch.zeros(b, t, dtype=torch.bool)
    last[::2, -1] = ends
    reward = 3 * torch.randn(b, t, generator=generator)
    action = torch.rand(b, t, 2, generator=generator) * 2 - 1
    return ReplayBatch(observation, reward, false, last, last, action, {}, torch.zeros(b, t, dtype=torch.int64))


def make_time_step(agent: TDMPC2, count: int, first: bool = True) -> TimeStep:
    false = torch.zeros(count, dtype=torch.bool)
    return TimeStep(make_batch(agent).observation[:count, 0], torch.zeros(count), false | first, false, false)


def two_hot_loss(logits, target: float) -> float:
    """Cross-entropy of one distribution over 21 bins in -5..5 with the two-hot encoding of a number."""
    position = min(max(math.copysign(math.log(1 + abs(target)), target), -5), 5)
    log_probs = (logits - logits.exp().sum().log()).tolist()
    return -sum(max(0.0, 1 - abs(-5 + 0.5 * i - position) / 0.5) * log_prob for i, log_prob in enumerate(log_probs))


def symexp_mean(logits) -> float:
    probabilities = (logits.exp() / logits.exp().sum()).tolist()
    mean = sum(probability * (-5 + 0.5 * i) for i, probability in enumerate(probabilities))
    return math.copysign(math.exp(abs(mean)) - 1, mean)


@pytest.mark.parametrize("episodic", [False, True])
def test_model_losses_equal_the_published_formulas(episodic):
    agent = make_agent(episodic=episodic, networks=replace(SMALL, dropout=0.0)).double()
    batch = make_batch(agent)
    torch.manual_seed(3)
    loss, latents, logs = agent.model_loss(agent.prepare(batch))
    torch.manual_seed(3)
    noise = torch.randn(6, 3, 2, dtype=torch.float64)
    pair = torch.rand(3).topk(2).indices.tolist()
    world, gamma = agent.world, agent.discount
    consistency = reward = value = termination = 0.0
    with torch.no_grad():
        for i in range(6):
            z = world.encode(batch.observation[i, :1].double())
            for t in range(3):
                torch.testing.assert_close(latents[i, t], z)
                action, step_reward = batch.action[i, t].double(), float(batch.reward[i, t + 1])
                observed_latent = world.encode(batch.observation[i, t + 1 : t + 2].double())
                next_action = agent.policy(observed_latent, noise[i, t]).action
                values = [
                    symexp_mean(agent.target_critic(observed_latent[None], next_action[None])[m, 0]) for m in pair
                ]
                terminated = float(batch.is_terminal[i, t + 1])
                target = step_reward + gamma * (1 - terminated) * min(values)
                weight = 0.5**t / 3 / 6
                reward += weight * two_hot_loss(world.reward_logits(z, action), step_reward)
                value += (
                    weight / 3 * sum(two_hot_loss(agent.critic(z[None], action[None])[m, 0], target) for m in range(3))
                )
                z = world.next_latent(z, action)
                consistency += weight * float((z - observed_latent).square().mean())
                if episodic:
                    probability = float(world.termination_logits(z).sigmoid())
                    termination -= math.log(probability if terminated else 1 - probability) / 18
    for name, expected in (("consistency", consistency), ("reward", reward), ("value", value)):
        assert logs[f"{name}_loss"].detach().item() == pytest.approx(expected, rel=1e-9), name
    assert ("termination_loss" in logs) == episodic and float(
        logs.get("termination_loss", torch.zeros(())).detach()
    ) == pytest.approx(termination, rel=1e-9)
    assert loss.detach().item() == pytest.approx(20 * consistency + 0.1 * reward + 0.1 * value + termination, rel=1e-9)


def test_policy_loss_equals_the_published_formula_and_the_scale_tracks_percentiles():
    agent = make_agent(networks=replace(SMALL, dropout=0.0), optimizer=TDMPC2OptimizerConfig(tau=0.3)).double()
    latents = agent.world.encode(torch.randn(6, 4, 1, 3).double()).detach()
    torch.manual_seed(3)
    loss, _ = agent.policy_loss(latents)
    torch.manual_seed(3)
    noise = torch.randn(6, 4, 2, dtype=torch.float64)
    pair = torch.rand(3).topk(2).indices.tolist()
    with torch.no_grad():
        samples = [[agent.policy(latents[i, t], noise[i, t]) for t in range(4)] for i in range(6)]
    values = [
        [
            sum(symexp_mean(agent.critic(latents[i : i + 1, t], samples[i][t].action[None])[m, 0]) for m in pair) / 2
            for t in range(4)
        ]
        for i in range(6)
    ]
    first_values = sorted(row[0] for row in values)
    low, high = (
        first_values[0] + 0.25 * (first_values[1] - first_values[0]),
        first_values[4] + 0.75 * (first_values[5] - first_values[4]),
    )  # at ranks 0.25 and 4.75
    scale = 0.7 * 1 + 0.3 * max(1.0, high - low)
    assert float(agent.scale) == pytest.approx(scale, rel=1e-9)
    expected = -sum(
        0.5**t / 4 / 6 * (values[i][t] / scale + 1e-4 * float(samples[i][t].entropy))
        for i in range(6)
        for t in range(4)
    )
    assert loss.detach().item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for p in agent.critic.parameters())
    assert all(p.grad is not None for p in agent.policy.parameters())


def test_the_target_critic_is_an_ema_without_gradients():
    agent = make_agent(optimizer=TDMPC2OptimizerConfig(tau=0.25))
    before = copy.deepcopy(agent.target_critic.state_dict())
    agent.update(make_batch(agent))
    for name, value in agent.target_critic.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * agent.critic.state_dict()[name])


def test_an_update_changes_every_weight_and_the_encoder_has_its_own_learning_rate():
    agent = make_agent(episodic=True, optimizer=TDMPC2OptimizerConfig(lr=1e-3, encoder_lr=1e-5))
    before = {name: p.clone() for name, p in agent.named_parameters()}
    agent.update(make_batch(agent))
    for name, p in agent.named_parameters():
        max_change = float((p - before[name]).detach().abs().max())
        if name.startswith("target_critic"):
            assert max_change > 0, name
        else:  # the first step of Adam has the size of the learning rate
            rate = 1e-5 if name.startswith("world.encoder") else 1e-3
            assert max_change == pytest.approx(rate, rel=0.05), name


def test_gradients_are_clipped_by_their_joint_norm():
    agent = make_agent()
    loss = sum(p.square().sum() for p in agent.world.parameters()) * 1e4
    norm = backward_and_step(loss, agent.model_optimizer, agent.max_grad_norm)
    clipped_norm = torch.stack([p.grad.norm() for p in agent.world.parameters()]).norm()
    assert norm > 20 and float(clipped_norm) == pytest.approx(20, rel=1e-4)


def test_updates_on_the_same_data_lower_the_loss():
    agent = make_agent(random_weights=False)
    batch, losses = make_batch(agent), []
    for _ in range(60):
        logs = agent.update(batch).logs
        losses.append(20 * logs["consistency_loss"] + 0.1 * logs["reward_loss"] + 0.1 * logs["value_loss"])
    assert losses[-1] < 0.8 * losses[0] and logs["reward_loss"] < 2.5 < math.log(21)


def test_a_non_finite_loss_raises_and_changes_no_weight():
    agent = make_agent()
    before = copy.deepcopy(agent.state_dict())
    batch = make_batch(agent)
    with pytest.raises(FloatingPointError, match=r"^loss is nan"):
        agent.update(batch._replace(observation=batch.observation * float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "discount"), [(1, 0.95), (100, 0.95), (200, 0.975), (500, 0.99), (1000, 0.995), (5000, 0.995)]
)
def test_the_discount_grows_with_the_episode_length(steps, discount):
    assert discount_for_episode_length(steps) == pytest.approx(discount)


def test_rejects_an_episode_length_of_zero():
    with pytest.raises(ValueError, match="episode_length must be 1 or more, got 0"):
        make_agent(episode_length=0)


@pytest.mark.parametrize("observation", [(3,), (40, 40, 3)])
def test_prepare_pairs_each_action_with_its_reward_and_next_observation(observation):
    agent = make_agent(observation, num_stacked_frames=2)
    assert agent.single_episode and agent.batch_length == 5
    batch = make_batch(agent)
    prepared = agent.prepare(batch)
    assert prepared.windows.shape == (6, 4, 2, *observation)
    assert torch.equal(prepared.action, batch.action[:, 1:4]) and torch.equal(prepared.reward, batch.reward[:, 2:])
    assert torch.equal(prepared.terminated, batch.is_terminal[:, 2:].float())
    if not agent.spaces.observation.is_image:
        for i in range(4):
            assert torch.equal(prepared.windows[:, i], batch.observation[:, i : i + 2])
    agent.update(batch)


def test_windows_at_the_start_of_an_episode_are_the_same_in_learning_and_acting():
    agent = make_agent(num_stacked_frames=3)
    batch = make_batch(agent)
    is_first = torch.zeros_like(batch.is_first)
    is_first[0, 2] = is_first[1, 1] = True  # within the context steps
    assert agent.context_steps == 2
    prepared = agent.prepare(batch._replace(is_first=is_first))
    carry, observations = agent.init_carry(6), batch.observation.unbind(1)
    for t, observation in enumerate(observations[: agent.batch_length]):
        zeros = torch.zeros(6)
        time_step = TimeStep(observation, zeros, is_first[:, t], zeros.bool(), zeros.bool())
        window = agent._window(carry["past"], time_step)
        carry = {**carry, "past": window[:, 1:]}
        if t >= 2:
            assert torch.equal(prepared.windows[:, t - 2], window)


def test_the_plan_is_kept_within_an_episode_and_reset_at_the_next_one():
    agent = make_agent(num_stacked_frames=3)
    carry = agent.init_carry(2)
    time_step = make_time_step(agent, 2)
    policy_step = agent.act(carry, time_step, explore=True)
    assert (
        policy_step.action.shape == (2, 2)
        and policy_step.action.abs().max() <= 1
        and policy_step.action.dtype == torch.float32
    )
    assert policy_step.carry["mean"].abs().sum() > 0 and not policy_step.carry["mean"][:, -1].any()
    assert torch.equal(policy_step.carry["past"], time_step.observation[:, None].expand(2, 2, 3))
    next_step = TimeStep(time_step.observation + 1, *time_step[1:])._replace(is_first=torch.tensor([False, True]))

    def act_at_next_step(carry):
        torch.manual_seed(5)
        return agent.act(carry, next_step, explore=False)

    continued, restarted = act_at_next_step(policy_step.carry), act_at_next_step(carry)
    assert not torch.equal(continued.action[0], restarted.action[0]) and torch.equal(
        continued.action[1], restarted.action[1]
    )
    assert torch.equal(continued.carry["past"][0, 0], time_step.observation[0])
    assert torch.equal(continued.carry["past"][1, 0], next_step.observation[1])


def test_noise_is_added_only_when_exploring():
    agent = make_agent()
    actions = []
    for explore in (False, True):
        torch.manual_seed(5)
        actions.append(agent.act(agent.init_carry(4), make_time_step(agent, 4), explore).action)
    assert not torch.equal(*actions)


def test_rejects_discrete_actions_with_a_remedy():
    with pytest.raises(ValueError, match="continuous actions, these are 4 discrete ones: use MuZero"):
        TDMPC2(EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("discrete", 4)), 100)
    with pytest.raises(ValueError, match="num_stacked_frames must be 1 or more, got 0"):
        make_agent(num_stacked_frames=0)


def test_a_resumed_agent_equals_an_uninterrupted_one(tmp_path):
    agent = make_agent()
    agent.update(make_batch(agent))
    saved = {"agent": agent.state_dict(), "optimizers": {n: o.state_dict() for n, o in agent.optimizers().items()}}
    torch.save(
        saved | {"carry": agent.act(agent.init_carry(2), make_time_step(agent, 2), True).carry}, tmp_path / "state.pt"
    )
    resumed, state = make_agent(random_weights=False), torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["agent"])
    for name, optimizer in resumed.optimizers().items():
        optimizer.load_state_dict(state["optimizers"][name])
    for learner in (agent, resumed):
        torch.manual_seed(7)
        learner.update(make_batch(learner, seed=2))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in agent.state_dict().items())
    actions = []
    for learner in (agent, resumed):
        torch.manual_seed(8)
        actions.append(learner.act(state["carry"], make_time_step(learner, 2, first=False), True).action)
    assert torch.equal(*actions)


def test_the_exported_simulator_predicts_like_the_agents_world_model():
    agent = make_agent(episodic=True, num_stacked_frames=2)
    simulator = agent.simulator(title="exported")
    context, action = torch.randn(4, 3, 3), torch.rand(4, 2) * 2 - 1
    state, observation = simulator.reset(context)
    assert (
        torch.equal(observation, context[:, -1])
        and simulator.spec.context.shape[0] == 3
        and simulator.spec.context_frames == 2
    )
    _, output = simulator.step(state, action)
    with torch.no_grad():
        latent = agent.world.encode(context[:, 1:])
        torch.testing.assert_close(output.latent, agent.world.next_latent(latent, action))
        torch.testing.assert_close(output.reward, agent.world.predict_reward(latent, action))
        assert torch.equal(
            output.terminated, agent.world.termination_logits(agent.world.next_latent(latent, action)).sigmoid() > 0.5
        )
    short_context_state = simulator.reset(context[:, -1:])[0]
    assert torch.equal(short_context_state.latent, simulator.reset(context[:, -1:].expand(-1, 2, -1))[0].latent)


def test_observe_updates_the_window_without_planning(monkeypatch):
    agent = make_agent((3,), num_stacked_frames=3)
    carry, time_step = agent.init_carry(2), make_time_step(agent, 2)
    policy_step = agent.act(carry, time_step, explore=True)
    monkeypatch.setattr(agent.planner, "plan", None)  # planning would raise an error
    action = torch.tensor([[0.5, -0.5], [1.0, 0.0]])
    observed = agent.observe(carry, time_step, action)
    assert torch.equal(observed.action, action)
    assert torch.equal(observed.carry["past"], policy_step.carry["past"]) and not observed.carry["mean"].any()
    next_step = make_time_step(agent, 2, first=False)
    assert torch.equal(agent.observe(observed.carry, next_step, action).carry["past"][:, -1], next_step.observation)
