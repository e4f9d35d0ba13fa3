"""MBPO: branched rollouts, their buffer, elite members and mixed batches; an interrupted run equals another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.batched_envs import GymnasiumEnvSpec
from vwm.envs.time_step import EnvSpaces
from vwm.models.pets.network import ProbabilisticEnsemble
from vwm.rl.agent import ReplayBatch
from vwm.rl.agent_training import AgentTraining
from vwm.rl.algorithms.branched_rollouts import RolloutLengthSchedule, branch_rollouts, predict_by_members
from vwm.rl.algorithms.mbpo import HOLDOUT_RATE, MBPO
from vwm.rl.algorithms.soft_actor_critic import SACConfig
from vwm.rl.evaluation_log import EvaluationConfig
from vwm.rl.online_learning import OnlineLearning
from vwm.rl.transitions import TransitionBuffer, Transitions

SMALL = {
    "sac": SACConfig(width=8, layers=1), "members": 4, "width": 8, "layers": 1, "elites": 2, "policy_updates": 2,
    "policy_batch_size": 10, "real_ratio": 0.3, "batch_size": 6, "model_capacity": 40,
}  # fmt: skip


def make_agent(**changes) -> MBPO:
    torch.manual_seed(0)
    spaces = EnvSpaces(ObservationSpace.vector(3), ActionSpace("continuous", 2))
    return MBPO(spaces, **{**SMALL, **changes})


def make_batch(seed: int = 1, size: int = 6) -> ReplayBatch:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    false = torch.zeros(size, 2, dtype=torch.bool)
    counts = torch.arange(size * 2 * 4).view(size, 2, 4).float() % 3
    counts[::3] = 0  # held out
    return ReplayBatch(
        draw(size, 2, 3), draw(size, 2), false, false, false, draw(size, 2, 2).tanh(), {"bootstrap": counts}, false
    )


def test_rollouts_branch_from_their_starts_and_end_with_terminations() -> None:
    start = np.random.default_rng(0).normal(size=(5, 2))
    start[3] = 3.0  # ends at once

    def act(at):
        return at[:, :1] * 2

    def predict(at, action):
        following = at + 0.3 * action
        return following, at.sum(1) - action[:, 0], abs(following[:, 0]) > 1.5

    expected = []
    for row in start:
        for step in range(4):
            (following,), (reward,), (terminal,) = predict(row[None], act(row[None]))
            expected.append((step, row, act(row[None])[0], reward, following, terminal))
            row = following
            if terminal:
                break
    expected.sort(key=lambda found: found[0])
    assert 5 < len(expected) < 20 and any(found[5] for found in expected if found[0] == 2)
    found, counts = branch_rollouts(torch.from_numpy(start), 4, act, predict)
    assert len(counts) == 20 and torch.equal(counts[:5], torch.ones(5, dtype=torch.bool))
    for part, name in enumerate(Transitions._fields, 1):
        ours = getattr(found, name)[counts].numpy()
        np.testing.assert_allclose(ours, np.array([row[part] for row in expected]), rtol=1e-13)


def test_the_buffer_keeps_the_last_transitions_that_count() -> None:
    buffer, kept, number = TransitionBuffer(8, 2, 1), [], 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        numbers = torch.arange(number, number + 5).float()
        valid = torch.rand(5, generator=generator) < 0.7
        buffer.add(Transitions(numbers[:, None].expand(5, 2), numbers[:, None], numbers, -numbers[:, None].expand(5, 2),
                               numbers % 2 == 1), valid)  # fmt: skip
        kept, number = (kept + numbers[valid].tolist())[-8:], number + 5
        drawn = buffer.sample(200)
        assert set(drawn.reward.tolist()) == set(kept)
        assert torch.equal(drawn.observation[:, 1], drawn.reward) and torch.equal(drawn.action[:, 0], drawn.reward)
        assert torch.equal(drawn.next_observation[:, 0], -drawn.reward)
        assert torch.equal(drawn.terminal, drawn.reward % 2 == 1)
    assert number == 35 and len(kept) == 8 and int(buffer.num_added) > 16
    with pytest.raises(ValueError, match="capacity=8 is less than the 9 transitions of a rollout"):
        buffer.add(drawn, torch.ones(9, dtype=torch.bool))


def test_rollouts_grow_between_two_numbers_of_updates() -> None:
    schedule = RolloutLengthSchedule(first=1, last=5, begin=100, end=200)
    assert [schedule.length(n) for n in (0, 100, 124, 125, 150, 199, 200, 900)] == [1, 1, 1, 2, 3, 4, 5, 5]
    assert RolloutLengthSchedule(3, 3).length(0) == 3
    with pytest.raises(ValueError, match="first=4 at begin=0 to last=3 at end=0: neither may shrink"):
        RolloutLengthSchedule(4, 3)


def test_each_row_follows_one_elite_member() -> None:
    torch.manual_seed(0)
    ensemble = ProbabilisticEnsemble(2, 0, 1, members=4, width=4, layers=1)
    with torch.no_grad():
        for weight in ensemble.parameters():
            weight.zero_()
        ensemble.linear_layers[-1].bias[:, 0, :3] = torch.arange(4.0)[:, None] * torch.tensor([1.0, 1.0, 10.0])
        ensemble.linear_layers[-1].bias[:, 0, -1] = torch.tensor([-1.0, 1.0, -1.0, 1.0])  # members 1 and 3 terminate
        ensemble.min_log_variance.fill_(-60)
        ensemble.max_log_variance.fill_(-50)
    start = torch.full((400, 2), 7.0)
    following, reward, terminal = predict_by_members(ensemble, torch.tensor([3, 0]), start, torch.zeros(400, 1))
    member = (reward / 10).round()
    assert set(member.tolist()) == {0.0, 3.0} and 150 < (member == 3).sum() < 250
    torch.testing.assert_close(following, start + member[:, None])
    assert torch.equal(terminal, member == 3)


def test_members_are_ranked_by_their_errors_on_what_none_is_trained_on() -> None:
    agent, batch = make_agent(), make_batch()
    inputs = torch.cat((batch.observation[:, 0], batch.action[:, 0]), dim=-1)
    target = torch.cat((batch.observation[:, 1] - batch.observation[:, 0], batch.reward[:, 1:]), dim=-1)
    agent.learn(batch, steps=0)
    with torch.no_grad():
        mean = agent.dynamics(inputs.expand(4, -1, -1)).mean.double().numpy()
    errors = [((mean[m, ::3] - target[::3].double().numpy()) ** 2).mean() for m in range(4)]
    np.testing.assert_allclose(agent.holdout_error.numpy(), HOLDOUT_RATE * np.array(errors), rtol=1e-5)
    assert set(agent.elite_members.tolist()) == set(np.argsort(errors)[:2].tolist())
    agent.learn(batch._replace(extras={"bootstrap": torch.ones(6, 2, 4)}), steps=0)  # none is held out
    np.testing.assert_allclose(agent.holdout_error.numpy(), HOLDOUT_RATE * np.array(errors), rtol=1e-5)


def test_members_do_not_learn_from_what_is_held_out() -> None:
    agent, other, batch = make_agent(), make_agent(), make_batch()
    reward = batch.reward.clone()
    reward[::3] += 100
    agent.learn(batch, steps=0)
    other.learn(batch._replace(reward=reward), steps=0)
    assert all(torch.equal(a, b) for a, b in zip(agent.dynamics.parameters(), other.dynamics.parameters(), strict=True))
    assert (other.holdout_error > agent.holdout_error + 1).all()
    step = agent.observe((), make_batch(size=400), torch.zeros(400, 2))
    held_out = (step.extras["bootstrap"] == 0).all(1).float().mean()
    assert 0.14 < held_out < 0.3  # 0.2, and those that no member drew: 0.8 exp(-4)


def test_the_policy_learns_from_real_and_imagined_transitions_after_the_warmup() -> None:
    agent = make_agent(predict_termination=False, warmup_updates=1, rollouts=RolloutLengthSchedule(1, 3, 1, 3))
    policy = {name: value.clone() for name, value in agent.sac.state_dict().items()}
    logs = agent.update(make_batch(1)).logs
    assert all(torch.equal(value, policy[name]) for name, value in agent.sac.state_dict().items())
    assert "critic_loss" not in logs and int(agent.model_data.num_added) == 0
    batch = make_batch(2)
    agent.update(batch)
    assert int(agent.model_data.num_added) == 6
    torch.testing.assert_close(agent.model_data.observation[:6], batch.observation[:, 0])  # where they branch
    assert not torch.equal(agent.sac.state_dict()["log_temperature"], policy["log_temperature"])
    agent.update(batch)
    assert int(agent.model_data.num_added) == 6 + 2 * 6  # two steps long by now
    real = Transitions(*(part + 1000 if part.dtype.is_floating_point else part for part in
                         (batch.observation[:, 0], batch.action[:, 0], batch.reward[:, 1], batch.observation[:, 1],
                          batch.is_terminal[:, 1])))  # fmt: skip
    mixed = agent.mix(real)
    assert len(mixed.reward) == 10 and (mixed.reward > 500).sum() == 3 == len(set(mixed.reward[:3].tolist()))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="elites=5 must be at most members=4"):
        make_agent(elites=5)
    with pytest.raises(ValueError, match="are 10 transitions, more than batch_size=6"):
        make_agent(real_ratio=1.0)
    with pytest.raises(ValueError, match=r"holdout must lie in 0\.\.1, got 2"):
        make_agent(holdout=2)


@pytest.mark.usefixtures("no_curves")
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(name: str, steps: int) -> dict:
        learning = OnlineLearning(
            GymnasiumEnvSpec("Pendulum-v1", time_limit=12), lambda spaces: MBPO(spaces, **SMALL, warmup_updates=4),
            prefill=20, pretrain_updates=4, replay_capacity=200,
        )  # fmt: skip
        evaluation = EvaluationConfig(every=100, episodes=1, video=False)
        AgentTraining(
            tmp_path / name, learning, steps=steps, checkpoint_every=20, log_every=4, evaluation=evaluation
        ).run()
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        return checkpoint["algorithm"]["policy"]

    whole = run("whole", 60)
    run("stopped", 40)
    resumed = run("stopped", 60)
    assert int(whole["updates_made"]) == 4 + 41 and int(whole["model_data.num_added"]) > 40
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
