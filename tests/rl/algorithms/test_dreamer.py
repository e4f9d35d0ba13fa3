"""Dreamer in its versions: what it acts on, what it learns, and that nothing is lost between updates."""

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


def make(version: int, kind: str = "continuous") -> Dreamer:
    torch.manual_seed(0)
    spaces = EnvSpaces(ObservationSpace.of_shape((5,)), ActionSpace(kind, 2))
    net = {"width": 12, "layers": 1}
    old = {**net, "norm": "none", "activation": "elu"}
    shape = {"batch_size": BATCH, "batch_length": LENGTH}
    if version == 3:
        return Dreamer(
            spaces,
            WORLD[3],
            ActorConfig(**net),
            CriticConfig(**net),
            DreamerOptimizerConfig(lr=1e-2, warmup=0),
            DreamerImaginationConfig(horizon=4),
            **shape,
        )
    separate = DreamerOptimizerConfig(1e-2, 1e-2, 1e-2, clip=100)
    through = ActorConfig(
        "dynamics" if kind == "continuous" else "reinforce", continuous_distribution="tanh_normal", **old
    )
    slow = (
        {"target_network": "target", "target_rate": 1.0, "target_every": 2}
        if version == 2
        else {"target_network": "none"}
    )
    critic = CriticConfig("normal", **slow, **old)
    imagination = DreamerImaginationConfig(horizon=4, discount=0.99, normalize_returns=False)
    plain = {"replay_critic_scale": 0.0, "store_latents": False}
    return Dreamer(spaces, WORLD[version], through, critic, separate, imagination, **plain, **shape)


def moments(agent: Dreamer, steps: int, batch: int = 2) -> ReplayBuffer:
    """A life of ``steps`` in a made-up world: observations are noise, the action is what is paid."""
    replay = ReplayBuffer(batch * steps, batch, agent.spaces, agent.extras)
    generator = torch.Generator().manual_seed(3)
    carry, reward = agent.init_carry(batch), torch.zeros(batch)
    for t in range(steps):
        last = torch.full((batch,), t % 8 == 7)
        first = torch.full((batch,), t % 8 == 0)
        observation = torch.randn(batch, 5, generator=generator)
        time_step = TimeStep(observation, torch.where(first, 0.0, reward), first, last, last)
        acted = agent.act(carry, time_step, explore=True)
        replay.add(time_step, acted.action, acted.extras)
        carry, reward = (
            acted.carry,
            acted.action.float().flatten(1).sum(-1) if acted.action.ndim > 1 else acted.action.float(),
        )
    return replay


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_every_version_learns_to_earn_rewards(version: int, kind: str) -> None:
    agent = make(version, kind)
    batch = moments(agent, 40).sample(BATCH, agent.batch_length)
    before = [weight.clone() for weight in agent.parameters()]
    logs = [agent.update(batch).logs for _ in range(8)]
    assert logs[-1]["loss/world"] < logs[0]["loss/world"]
    assert set(logs[0]) >= {"loss/reconstruction", "loss/reward", "kl_nats", "actor_loss", "critic_loss", "entropy"}
    names = [name for name, _ in agent.named_parameters()]
    still = [n for n, a, b in zip(names, before, agent.parameters(), strict=True) if torch.equal(a, b)]
    assert all("actor_critic.target_critic" in name for name in still) if version == 1 else not still, still


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_episode_that_is_over_is_forgotten(version: int) -> None:
    agent, nothing = make(version), torch.zeros(2).bool()
    time_step = TimeStep(torch.randn(2, 5), torch.zeros(2), torch.tensor([True, False]), nothing, nothing)
    carry = agent.init_carry(2)._replace(deter=torch.rand(2, 16), action=torch.rand(2, 2))
    remembered = agent.act(carry, time_step, explore=False).carry
    fresh = agent.act(agent.init_carry(2), time_step, explore=False).carry
    assert torch.equal(remembered.deter[0], fresh.deter[0])
    assert not torch.equal(remembered.deter[1], fresh.deter[1])


def test_an_update_goes_on_from_the_states_that_replay_kept_and_writes_new_ones() -> None:
    agent = make(3)
    batch = moments(agent, 40).sample(BATCH, agent.batch_length)
    state, rest = agent._initial_state(batch)
    assert state is not None and rest.reward.shape == (BATCH, LENGTH)
    assert torch.equal(state.deter, batch.extras["deter"][:, 0].float())
    assert torch.equal(state.action, agent.world_model.rssm.encode_action(batch.action[:, 0]))
    assert torch.equal(rest.reward, batch.reward[:, 1:])
    _, written, indices = agent.update(batch)
    assert indices is not None and torch.equal(indices, batch.indices[:, 1:])  # the state it went on from is as it was
    assert all(written[name].shape == batch.extras[name][:, 1:].shape for name in ("deter", "stoch"))
    assert not torch.equal(written["deter"], batch.extras["deter"][:, 1:])
    assert written["stoch"].dtype == torch.uint8 and written["stoch"].sum(-1).eq(4).all()  # one class a variable


@pytest.mark.parametrize("squash", [False, True])
def test_the_critics_loss_on_replay_is_that_of_the_definition(squash: bool) -> None:
    """What came, and beyond the batch or a truncation what imagination says; nothing after an end."""
    agent = make(3)
    agent.world_model.settings = dataclasses.replace(agent.world_model.settings, tanh_reward=squash)
    batch = moments(agent, 40).sample(BATCH, agent.batch_length)
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
    found = agent.replay_critic_loss(rest, states, losses)
    features = agent.world_model.rssm.features(states)
    boot, total = imagined[0].view(BATCH, LENGTH), 0.0
    for b in range(BATCH):
        for t in range(LENGTH - 1):
            if is_last[b, t]:
                continue
            ahead = boot[b, LENGTH - 1]
            for i in reversed(range(t + 1, LENGTH)):
                live = (1 - 1 / 333) * float(not is_terminal[b, i])
                lam = 0.95 * float(not is_last[b, i])
                reward = rest.reward[b, i].tanh() if squash else rest.reward[b, i]
                ahead = reward + live * ((1 - lam) * boot[b, i] + lam * ahead)
            total += float(agent.actor_critic.critic_loss(features[b, t], ahead).detach())
    assert found.item() == pytest.approx(total / (BATCH * (LENGTH - 1)), rel=1e-4)


@pytest.mark.usefixtures("no_curves")
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> None:
        env = GymnasiumEnvSpec("Pendulum-v1", time_limit=12)
        learning = OnlineLearning(env, small, num_envs=2, prefill=20, updates_per_decision=0.5, replay_capacity=60)
        evaluation = EvaluationConfig(every=1000, episodes=1, video=False)
        AgentTraining(folder, learning, steps=steps, checkpoint_every=30, evaluation=evaluation).run()

    def small(spaces: EnvSpaces) -> Dreamer:
        net = {"width": 12, "layers": 1}
        shape = {"imagination": DreamerImaginationConfig(horizon=3), "batch_size": 2, "batch_length": 4}
        return Dreamer(spaces, WORLD[3], ActorConfig(**net), CriticConfig(**net), **shape)

    run(tmp_path / "whole", 50)
    run(tmp_path / "broken", 30)
    run(tmp_path / "broken", 50)
    whole, broken = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["algorithm"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(whole["policy"][name], broken["policy"][name]) for name in whole["policy"])
    assert all(torch.equal(a, b) for a, b in zip(whole["carry"], broken["carry"], strict=True))


def test_a_non_finite_loss_stops_training_with_advice() -> None:
    agent = make(3)
    batch: ReplayBatch = moments(agent, 40).sample(BATCH, agent.batch_length)
    before = {name: value.clone() for name, value in agent.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"loss/reward is .*lower the learning rate"):
        agent.update(batch._replace(reward=batch.reward * float("inf")))
    assert all(torch.equal(value, before[name]) for name, value in agent.named_parameters())


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give both, or neither"):
        DreamerOptimizerConfig(actor_lr=1e-4)
    with pytest.raises(ValueError, match=r"imagination\.start_steps=0"):
        spaces = EnvSpaces(ObservationSpace.of_shape((5,)), ActionSpace("discrete", 2))
        Dreamer(spaces, WORLD[3], imagination=DreamerImaginationConfig(start_steps=2))


@pytest.mark.parametrize("version", [1, 3])
def test_who_watches_remembers_and_keeps_what_one_who_acts_does(version: int) -> None:
    agent = make(version)
    now = TimeStep(torch.randn(2, 5), torch.zeros(2), *torch.zeros(3, 2, dtype=torch.bool))
    torch.manual_seed(1)
    acted = agent.act(agent.init_carry(2), now, explore=False)
    torch.manual_seed(1)
    watched = agent.observe(agent.init_carry(2), now, acted.action)
    assert torch.equal(watched.action, acted.action) and watched.extras.keys() == acted.extras.keys()
    assert all(torch.equal(a, b) for a, b in zip(watched.carry, acted.carry, strict=True))
    assert all(torch.equal(watched.extras[name], acted.extras[name]) for name in acted.extras)
