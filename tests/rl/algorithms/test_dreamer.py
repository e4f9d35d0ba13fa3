"""Dreamer 1 to 3: acting, losses, latents in the replay, and resuming."""

import dataclasses
from pathlib import Path

import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.rssm.kl_loss import KLLoss
from vwm.models.rssm.world_model import RSSMWorldModelConfig
from vwm.rl.agent import ReplayBatch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import CriticConfig
from vwm.rl.algorithms.dreamer import Dreamer, DreamerImaginationConfig, DreamerOptimizerConfig
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.rl.replay_buffer import ReplayBuffer

LENGTH, BATCH = 6, 3
SMALL = {"deter": 16, "hidden": 12, "stoch": 4, "units": 12}
WORLD = {
    3: RSSMWorldModelConfig(**SMALL, classes=4, blocks=2),
    2: RSSMWorldModelConfig(
        **SMALL, classes=4, cell="norm_gru", norm="none", activation="elu", symlog=False, reconstruction_loss="normal",
        reward_distribution="normal", discount_horizon=0, kl=KLLoss("balanced", 0.8, 0.2, 0.0, "mean"),
    ),
    1: RSSMWorldModelConfig(
        **SMALL, classes=0, cell="gru", norm="none", activation="elu", symlog=False,
        reconstruction_loss="normal", reward_distribution="normal",
        predict_continue=False, discount_horizon=0, kl=KLLoss("elbo", free_nats=3.0, free_nats_over="mean"),
    ),
}  # fmt: skip


def make_agent(version: int, kind: str = "continuous") -> Dreamer:
    torch.manual_seed(0)
    spaces = EnvSpaces(ObservationSpace.of_shape((5,)), ActionSpace(kind, 2))
    network = {"width": 12, "layers": 1}
    old_network = {**network, "norm": "none", "activation": "elu"}
    shape = {"batch_size": BATCH, "batch_length": LENGTH}
    if version == 3:
        return Dreamer(
            spaces,
            WORLD[3],
            ActorConfig(**network),
            CriticConfig(**network),
            DreamerOptimizerConfig(lr=1e-2, warmup=0),
            DreamerImaginationConfig(horizon=4),
            **shape,
        )
    optimizer = DreamerOptimizerConfig(1e-2, 1e-2, 1e-2, clip=100)
    actor = ActorConfig(
        "dynamics" if kind == "continuous" else "reinforce", continuous_distribution="tanh_normal", **old_network
    )
    target = (
        {"target_network": "target", "target_rate": 1.0, "target_every": 2}
        if version == 2
        else {"target_network": "none"}
    )
    critic = CriticConfig("normal", **target, **old_network)
    imagination = DreamerImaginationConfig(horizon=4, discount=0.99, normalize_returns=False)
    replay_settings = {"replay_critic_scale": 0.0, "store_latents": False}
    return Dreamer(spaces, WORLD[version], actor, critic, optimizer, imagination, **replay_settings, **shape)


def collect_replay(agent: Dreamer, steps: int, batch: int = 2) -> ReplayBuffer:
    """Collect ``steps`` time steps of a synthetic environment: observations are noise, the reward is the action."""
    replay = ReplayBuffer(batch * steps, batch, agent.spaces, agent.extras)
    generator = torch.Generator().manual_seed(3)
    carry, reward = agent.init_carry(batch), torch.zeros(batch)
    for t in range(steps):
        is_last = torch.full((batch,), t % 8 == 7)
        is_first = torch.full((batch,), t % 8 == 0)
        observation = torch.randn(batch, 5, generator=generator)
        time_step = TimeStep(observation, torch.where(is_first, 0.0, reward), is_first, is_last, is_last)
        policy_step = agent.act(carry, time_step, explore=True)
        replay.add(time_step, policy_step.action, policy_step.extras)
        carry, reward = (
            policy_step.carry,
            policy_step.action.float().flatten(1).sum(-1)
            if policy_step.action.ndim > 1
            else policy_step.action.float(),
        )
    return replay


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_updates_lower_the_world_loss_and_change_every_weight(version: int, kind: str) -> None:
    agent = make_agent(version, kind)
    batch = collect_replay(agent, 40).sample(BATCH, agent.batch_length)
    before = [weight.clone() for weight in agent.parameters()]
    logs = [agent.update(batch).logs for _ in range(8)]
    assert logs[-1]["loss/world"] < logs[0]["loss/world"]
    assert set(logs[0]) >= {"loss/reconstruction", "loss/reward", "kl_nats", "actor_loss", "critic_loss", "entropy"}
    names = [name for name, _ in agent.named_parameters()]
    unchanged = [n for n, a, b in zip(names, before, agent.parameters(), strict=True) if torch.equal(a, b)]
    assert all("actor_critic.target_critic" in name for name in unchanged) if version == 1 else not unchanged, unchanged


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_carry_is_reset_at_the_first_step_of_an_episode(version: int) -> None:
    agent, false = make_agent(version), torch.zeros(2).bool()
    time_step = TimeStep(torch.randn(2, 5), torch.zeros(2), torch.tensor([True, False]), false, false)
    carry = agent.init_carry(2)._replace(deter=torch.rand(2, 16), action=torch.rand(2, 2))
    continued = agent.act(carry, time_step, explore=False).carry
    fresh = agent.act(agent.init_carry(2), time_step, explore=False).carry
    assert torch.equal(continued.deter[0], fresh.deter[0])
    assert not torch.equal(continued.deter[1], fresh.deter[1])


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_takes_the_mode_or_samples(deterministic: bool) -> None:
    agent, false = make_agent(3, "discrete"), torch.zeros(64).bool()
    agent.deterministic = deterministic
    time_step = TimeStep(torch.randn(5).expand(64, 5), torch.zeros(64), ~false, false, false)
    for explore in (False, True):
        policy_step = agent.act(agent.init_carry(64), time_step, explore)
        mode = agent.actor_critic.actor(agent.world_model.rssm.features(policy_step.carry)).mode()
        assert torch.equal(policy_step.action, mode) == (deterministic and not explore)


def test_an_update_starts_from_replayed_latents_and_writes_new_ones() -> None:
    agent = make_agent(3)
    batch = collect_replay(agent, 40).sample(BATCH, agent.batch_length)
    state, rest = agent._initial_state(batch)
    assert state is not None and rest.reward.shape == (BATCH, LENGTH)
    assert torch.equal(state.deter, batch.extras["deter"][:, 0].float())
    assert torch.equal(state.action, agent.world_model.rssm.encode_action(batch.action[:, 0]))
    assert torch.equal(rest.reward, batch.reward[:, 1:])
    _, new_latents, indices, _ = agent.update(batch)
    assert indices is not None and torch.equal(indices, batch.indices[:, 1:])  # the first latent is not updated
    assert all(new_latents[name].shape == batch.extras[name][:, 1:].shape for name in ("deter", "stoch"))
    assert not torch.equal(new_latents["deter"], batch.extras["deter"][:, 1:])
    assert (
        new_latents["stoch"].dtype == torch.uint8 and new_latents["stoch"].sum(-1).eq(4).all()
    )  # one class per variable


@pytest.mark.parametrize("tanh_reward", [False, True])
def test_the_replay_critic_loss_equals_the_reference(tanh_reward: bool) -> None:
    """Returns bootstrap from imagined ones after the batch and at truncations, and stop at terminations."""
    agent = make_agent(3)
    agent.world_model.settings = dataclasses.replace(agent.world_model.settings, tanh_reward=tanh_reward)
    batch = collect_replay(agent, 40).sample(BATCH, agent.batch_length)
    state, rest = agent._initial_state(batch)
    is_last = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    is_last[0, 2] = is_last[1, 3] = True
    is_terminal = torch.zeros_like(is_last)
    is_terminal[0, 2] = True
    rest = rest._replace(is_last=is_last, is_terminal=is_terminal)
    _, states, _ = agent.world_model.loss(
        rest.observation, rest.action, rest.reward, rest.is_first, rest.is_terminal, state
    )
    imagined = torch.randn(4, BATCH * LENGTH)
    losses = type("Learned", (), {"returns": imagined})()
    loss = agent.replay_critic_loss(rest, states, losses)
    features = agent.world_model.rssm.features(states)
    bootstrap, total = imagined[0].view(BATCH, LENGTH), 0.0
    for b in range(BATCH):
        for t in range(LENGTH - 1):
            if is_last[b, t]:
                continue
            next_return = bootstrap[b, LENGTH - 1]
            for i in reversed(range(t + 1, LENGTH)):
                discount = (1 - 1 / 333) * float(not is_terminal[b, i])
                lam = 0.95 * float(not is_last[b, i])
                reward = rest.reward[b, i].tanh() if tanh_reward else rest.reward[b, i]
                next_return = reward + discount * ((1 - lam) * bootstrap[b, i] + lam * next_return)
            total += float(agent.actor_critic.critic_loss(features[b, t], next_return).detach())
    assert loss.item() == pytest.approx(total / (BATCH * (LENGTH - 1)), rel=1e-4)


@pytest.mark.usefixtures("no_curves")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> None:
        env = GymnasiumEnvSpec("Pendulum-v1", time_limit=12)
        learning = OnlineLearning(
            env, make_small_agent, num_envs=2, prefill=20, updates_per_decision=0.5, replay_capacity=60
        )
        evaluation = EvaluationConfig(every=1000, episodes=1, video=False)
        AgentTraining(folder, learning, steps=steps, checkpoint_every=30, evaluation=evaluation).run()

    def make_small_agent(spaces: EnvSpaces) -> Dreamer:
        network = {"width": 12, "layers": 1}
        settings = {"imagination": DreamerImaginationConfig(horizon=3), "batch_size": 2, "batch_length": 4}
        return Dreamer(spaces, WORLD[3], ActorConfig(**network), CriticConfig(**network), **settings)

    run(tmp_path / "uninterrupted", 50)
    run(tmp_path / "interrupted", 30)
    run(tmp_path / "interrupted", 50)
    uninterrupted, interrupted = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]
        for name in ("uninterrupted", "interrupted")
    )
    assert all(
        torch.equal(uninterrupted["policy"][name], interrupted["policy"][name]) for name in uninterrupted["policy"]
    )
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted["carry"], interrupted["carry"], strict=True))


def test_a_non_finite_loss_stops_training_with_advice() -> None:
    agent = make_agent(3)
    batch: ReplayBatch = collect_replay(agent, 40).sample(BATCH, agent.batch_length)
    before = {name: value.clone() for name, value in agent.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"loss/reward is .*lower the learning rate"):
        agent.update(batch._replace(reward=batch.reward * float("inf")))
    assert all(torch.equal(value, before[name]) for name, value in agent.named_parameters())


def test_rejects_incompatible_settings() -> None:
    with pytest.raises(ValueError, match="give both, or neither"):
        DreamerOptimizerConfig(actor_lr=1e-4)
    with pytest.raises(ValueError, match=r"imagination\.start_steps=0"):
        spaces = EnvSpaces(ObservationSpace.of_shape((5,)), ActionSpace("discrete", 2))
        Dreamer(spaces, WORLD[3], imagination=DreamerImaginationConfig(start_steps=2))


@pytest.mark.parametrize("version", [1, 3])
def test_observe_returns_the_same_carry_and_extras_as_act(version: int) -> None:
    agent = make_agent(version)
    time_step = TimeStep(torch.randn(2, 5), torch.zeros(2), *torch.zeros(3, 2, dtype=torch.bool))
    torch.manual_seed(1)
    policy_step = agent.act(agent.init_carry(2), time_step, explore=False)
    torch.manual_seed(1)
    observed = agent.observe(agent.init_carry(2), time_step, policy_step.action)
    assert torch.equal(observed.action, policy_step.action) and observed.extras.keys() == policy_step.extras.keys()
    assert all(torch.equal(a, b) for a, b in zip(observed.carry, policy_step.carry, strict=True))
    assert all(torch.equal(observed.extras[name], policy_step.extras[name]) for name in policy_step.extras)


def test_sequences_longer_than_the_replay_are_refused(tmp_path: Path) -> None:
    def make_agent(spaces: EnvSpaces) -> Dreamer:
        return Dreamer(spaces, WORLD[3], ActorConfig(width=12, layers=1), CriticConfig(width=12, layers=1))

    for settings, steps, message in (
        ({"replay_capacity": 60}, 500, "replay_capacity=60 leaves 15 for each of 4 environments"),
        ({}, 40, "steps=40 leaves 10 for each of 4 environments: nothing would be learned"),
    ):
        learning = OnlineLearning(GymnasiumEnvSpec("Pendulum-v1"), make_agent, num_envs=4, **settings)
        with pytest.raises(ValueError, match=f"sequences of 65 time steps, and {message}"):
            AgentTraining(tmp_path / "run", learning, steps=steps).run()
