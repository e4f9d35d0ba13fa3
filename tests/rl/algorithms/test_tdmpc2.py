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


def agent(observation: tuple[int, ...] = (3,), random_weights: bool = True, **changes) -> TDMPC2:
    torch.manual_seed(0)
    settings = {
        "episode_length": 100,
        "networks": SMALL,
        "distributions": DISTRIBUTIONS,
        "planning": PLANNING,
        "batch_size": 6,
    }
    made = TDMPC2(
        EnvSpaces(ObservationSpace.of_shape(observation), ActionSpace("continuous", 2)), **{**settings, **changes}
    )
    if random_weights:
        randomize(made)
        made.target_critic.load_state_dict(made.critic.state_dict())
        with torch.no_grad():
            for p in made.target_critic.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return made


def batch(made: TDMPC2, seed: int = 1, ends: bool = True) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)
    b, t, shape = made.batch_size, made.batch_length, made.spaces.observation.shape
    if made.spaces.observation.is_image:
        observation = torch.randint(0, 256, (b, t, *shape), dtype=torch.uint8, generator=generator)
    else:
        observation = torch.randn(b, t, *shape, generator=generator)
    no, last = torch.zeros(b, t, dtype=torch.bool), torch.zeros(b, t, dtype=torch.bool)
    last[::2, -1] = ends
    reward = 3 * torch.randn(b, t, generator=generator)
    action = torch.rand(b, t, 2, generator=generator) * 2 - 1
    return ReplayBatch(observation, reward, no, last, last, action, {}, torch.zeros(b, t, dtype=torch.int64))


def time_step(made: TDMPC2, count: int, first: bool = True) -> TimeStep:
    no = torch.zeros(count, dtype=torch.bool)
    return TimeStep(batch(made).observation[:count, 0], torch.zeros(count), no | first, no, no)


def two_hot_loss(logits, number: float) -> float:
    """Of one distribution over 21 bins in -5..5."""
    place = min(max(math.copysign(math.log(1 + abs(number)), number), -5), 5)
    logs = (logits - logits.exp().sum().log()).tolist()
    return -sum(max(0.0, 1 - abs(-5 + 0.5 * i - place) / 0.5) * log for i, log in enumerate(logs))


def number_of(logits) -> float:
    shares = (logits.exp() / logits.exp().sum()).tolist()
    mean = sum(share * (-5 + 0.5 * i) for i, share in enumerate(shares))
    return math.copysign(math.exp(abs(mean)) - 1, mean)


@pytest.mark.parametrize("episodic", [False, True])
def test_every_loss_of_the_model_is_the_published_one(episodic):
    made = agent(episodic=episodic, networks=replace(SMALL, dropout=0.0)).double()
    data = batch(made)
    torch.manual_seed(3)
    loss, latents, logs = made.model_loss(made.prepare(data))
    torch.manual_seed(3)
    noise = torch.randn(6, 3, 2, dtype=torch.float64)
    pair = torch.rand(3).topk(2).indices.tolist()
    world, gamma = made.world, made.discount
    consistency = reward = value = end = 0.0
    with torch.no_grad():
        for i in range(6):
            z = world.encode(data.observation[i, :1].double())
            for t in range(3):
                torch.testing.assert_close(latents[i, t], z)
                action, earned = data.action[i, t].double(), float(data.reward[i, t + 1])
                seen = world.encode(data.observation[i, t + 1 : t + 2].double())
                follows = made.policy(seen, noise[i, t]).action
                values = [number_of(made.target_critic(seen[None], follows[None])[m, 0]) for m in pair]
                ended = float(data.is_terminal[i, t + 1])
                target = earned + gamma * (1 - ended) * min(values)
                share = 0.5**t / 3 / 6
                reward += share * two_hot_loss(world.reward_logits(z, action), earned)
                value += (
                    share / 3 * sum(two_hot_loss(made.critic(z[None], action[None])[m, 0], target) for m in range(3))
                )
                z = world.next_latent(z, action)
                consistency += share * float((z - seen).square().mean())
                if episodic:
                    probability = float(world.termination_logits(z).sigmoid())
                    end -= math.log(probability if ended else 1 - probability) / 18
    for name, expected in (("consistency", consistency), ("reward", reward), ("value", value)):
        assert logs[f"{name}_loss"].detach().item() == pytest.approx(expected, rel=1e-9), name
    assert ("termination_loss" in logs) == episodic and float(
        logs.get("termination_loss", torch.zeros(())).detach()
    ) == pytest.approx(end, rel=1e-9)
    assert loss.detach().item() == pytest.approx(20 * consistency + 0.1 * reward + 0.1 * value + end, rel=1e-9)


def test_the_policy_loss_is_the_published_one_and_the_scale_tracks_percentiles():
    made = agent(networks=replace(SMALL, dropout=0.0), optimizer=TDMPC2OptimizerConfig(tau=0.3)).double()
    latents = made.world.encode(torch.randn(6, 4, 1, 3).double()).detach()
    torch.manual_seed(3)
    loss, _ = made.policy_loss(latents)
    torch.manual_seed(3)
    noise = torch.randn(6, 4, 2, dtype=torch.float64)
    pair = torch.rand(3).topk(2).indices.tolist()
    with torch.no_grad():
        chosen = [[made.policy(latents[i, t], noise[i, t]) for t in range(4)] for i in range(6)]
    values = [
        [
            sum(number_of(made.critic(latents[i : i + 1, t], chosen[i][t].action[None])[m, 0]) for m in pair) / 2
            for t in range(4)
        ]
        for i in range(6)
    ]
    first = sorted(row[0] for row in values)
    low, high = first[0] + 0.25 * (first[1] - first[0]), first[4] + 0.75 * (first[5] - first[4])  # places 0.25 and 4.75
    scale = 0.7 * 1 + 0.3 * max(1.0, high - low)
    assert float(made.scale) == pytest.approx(scale, rel=1e-9)
    expected = -sum(
        0.5**t / 4 / 6 * (values[i][t] / scale + 1e-4 * float(chosen[i][t].entropy)) for i in range(6) for t in range(4)
    )
    assert loss.detach().item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for p in made.critic.parameters())
    assert all(p.grad is not None for p in made.policy.parameters())


def test_the_target_critic_is_an_ema_without_gradients():
    made = agent(optimizer=TDMPC2OptimizerConfig(tau=0.25))
    before = copy.deepcopy(made.target_critic.state_dict())
    made.update(batch(made))
    for name, value in made.target_critic.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * made.critic.state_dict()[name])


def test_an_update_changes_every_weight_and_the_encoder_has_its_own_learning_rate():
    made = agent(episodic=True, optimizer=TDMPC2OptimizerConfig(lr=1e-3, encoder_lr=1e-5))
    before = {name: p.clone() for name, p in made.named_parameters()}
    made.update(batch(made))
    for name, p in made.named_parameters():
        moved = float((p - before[name]).detach().abs().max())
        if name.startswith("target_critic"):
            assert moved > 0, name
        else:  # the first step of Adam is as long as its rate
            rate = 1e-5 if name.startswith("world.encoder") else 1e-3
            assert moved == pytest.approx(rate, rel=0.05), name


def test_gradients_are_clipped_by_their_joint_norm():
    made = agent()
    loss = sum(p.square().sum() for p in made.world.parameters()) * 1e4
    norm = backward_and_step(loss, made.model_optimizer, made.max_grad_norm)
    left = torch.stack([p.grad.norm() for p in made.world.parameters()]).norm()
    assert norm > 20 and float(left) == pytest.approx(20, rel=1e-4)


def test_updates_on_the_same_data_lower_the_loss():
    made = agent(random_weights=False)
    data, losses = batch(made), []
    for _ in range(60):
        logs = made.update(data).logs
        losses.append(20 * logs["consistency_loss"] + 0.1 * logs["reward_loss"] + 0.1 * logs["value_loss"])
    assert losses[-1] < 0.8 * losses[0] and logs["reward_loss"] < 2.5 < math.log(21)


def test_a_non_finite_loss_is_an_error_and_changes_no_weight():
    made = agent()
    before = copy.deepcopy(made.state_dict())
    data = batch(made)
    with pytest.raises(FloatingPointError, match=r"^loss is nan"):
        made.update(data._replace(observation=data.observation * float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "discount"), [(1, 0.95), (100, 0.95), (200, 0.975), (500, 0.99), (1000, 0.995), (5000, 0.995)]
)
def test_the_discount_grows_with_the_episode_length(steps, discount):
    assert discount_for_episode_length(steps) == pytest.approx(discount)


def test_rejects_an_episode_length_of_zero():
    with pytest.raises(ValueError, match="episode_length must be 1 or more, got 0"):
        agent(episode_length=0)


@pytest.mark.parametrize("observation", [(3,), (40, 40, 3)])
def test_prepare_pairs_each_action_with_its_reward_and_next_observation(observation):
    made = agent(observation, num_stacked_frames=2)
    assert made.single_episode and made.batch_length == 5
    data = batch(made)
    prepared = made.prepare(data)
    assert prepared.windows.shape == (6, 4, 2, *observation)
    assert torch.equal(prepared.action, data.action[:, 1:4]) and torch.equal(prepared.reward, data.reward[:, 2:])
    assert torch.equal(prepared.terminated, data.is_terminal[:, 2:].float())
    if not made.spaces.observation.is_image:
        for i in range(4):
            assert torch.equal(prepared.windows[:, i], data.observation[:, i : i + 2])
    made.update(data)


def test_windows_at_the_start_of_an_episode_are_the_same_in_learning_and_acting():
    made = agent(num_stacked_frames=3)
    data = batch(made)
    is_first = torch.zeros_like(data.is_first)
    is_first[0, 2] = is_first[1, 1] = True  # within the context steps
    assert made.context_steps == 2
    prepared = made.prepare(data._replace(is_first=is_first))
    carry, observations = made.init_carry(6), data.observation.unbind(1)
    for t, seen in enumerate(observations[: made.batch_length]):
        nothing = torch.zeros(6)
        now = TimeStep(seen, nothing, is_first[:, t], nothing.bool(), nothing.bool())
        window = made._window(carry["past"], now)
        carry = {**carry, "past": window[:, 1:]}
        if t >= 2:
            assert torch.equal(prepared.windows[:, t - 2], window)


def test_the_plan_is_kept_within_an_episode_and_reset_at_the_next():
    made = agent(num_stacked_frames=3)
    carry = made.init_carry(2)
    seen = time_step(made, 2)
    acted = made.act(carry, seen, explore=True)
    assert acted.action.shape == (2, 2) and acted.action.abs().max() <= 1 and acted.action.dtype == torch.float32
    assert acted.carry["mean"].abs().sum() > 0 and not acted.carry["mean"][:, -1].any()
    assert torch.equal(acted.carry["past"], seen.observation[:, None].expand(2, 2, 3))
    late = TimeStep(seen.observation + 1, *seen[1:])._replace(is_first=torch.tensor([False, True]))

    def again(carry):
        torch.manual_seed(5)
        return made.act(carry, late, explore=False)

    kept, fresh = again(acted.carry), again(carry)
    assert not torch.equal(kept.action[0], fresh.action[0]) and torch.equal(kept.action[1], fresh.action[1])
    assert torch.equal(kept.carry["past"][0, 0], seen.observation[0])
    assert torch.equal(kept.carry["past"][1, 0], late.observation[1])


def test_noise_is_added_only_when_exploring():
    made = agent()
    actions = []
    for explore in (False, True):
        torch.manual_seed(5)
        actions.append(made.act(made.init_carry(4), time_step(made, 4), explore).action)
    assert not torch.equal(*actions)


def test_rejects_discrete_actions_with_a_remedy():
    with pytest.raises(ValueError, match="continuous actions, these are 4 discrete ones: use MuZero"):
        TDMPC2(EnvSpaces(ObservationSpace.of_shape((3,)), ActionSpace("discrete", 4)), 100)
    with pytest.raises(ValueError, match="num_stacked_frames must be 1 or more, got 0"):
        agent(num_stacked_frames=0)


def test_a_resumed_agent_equals_an_uninterrupted_one(tmp_path):
    made = agent()
    made.update(batch(made))
    saved = {"agent": made.state_dict(), "optimizers": {n: o.state_dict() for n, o in made.optimizers().items()}}
    torch.save(saved | {"carry": made.act(made.init_carry(2), time_step(made, 2), True).carry}, tmp_path / "state.pt")
    again, state = agent(random_weights=False), torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["agent"])
    for name, optimizer in again.optimizers().items():
        optimizer.load_state_dict(state["optimizers"][name])
    for each in (made, again):
        torch.manual_seed(7)
        each.update(batch(each, seed=2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    actions = []
    for each in (made, again):
        torch.manual_seed(8)
        actions.append(each.act(state["carry"], time_step(each, 2, first=False), True).action)
    assert torch.equal(*actions)


def test_the_exported_simulator_is_the_world_model_that_the_agent_plans_in():
    made = agent(episodic=True, num_stacked_frames=2)
    world = made.simulator(title="ours")
    context, action = torch.randn(4, 3, 3), torch.rand(4, 2) * 2 - 1
    state, shown = world.reset(context)
    assert torch.equal(shown, context[:, -1]) and world.spec.context.shape[0] == 3 and world.spec.context_frames == 2
    _, out = world.step(state, action)
    with torch.no_grad():
        latent = made.world.encode(context[:, 1:])
        torch.testing.assert_close(out.latent, made.world.next_latent(latent, action))
        torch.testing.assert_close(out.reward, made.world.predict_reward(latent, action))
        assert torch.equal(
            out.terminated, made.world.termination_logits(made.world.next_latent(latent, action)).sigmoid() > 0.5
        )
    short = world.reset(context[:, -1:])[0]
    assert torch.equal(short.latent, world.reset(context[:, -1:].expand(-1, 2, -1))[0].latent)


def test_observe_updates_the_window_without_planning(monkeypatch):
    made = agent((3,), num_stacked_frames=3)
    carry, now = made.init_carry(2), time_step(made, 2)
    acted = made.act(carry, now, explore=True)
    monkeypatch.setattr(made.planner, "plan", None)  # to ask it would be an error
    action = torch.tensor([[0.5, -0.5], [1.0, 0.0]])
    watched = made.observe(carry, now, action)
    assert torch.equal(watched.action, action)
    assert torch.equal(watched.carry["past"], acted.carry["past"]) and not watched.carry["mean"].any()
    later = time_step(made, 2, first=False)
    assert torch.equal(made.observe(watched.carry, later, action).carry["past"][:, -1], later.observation)
