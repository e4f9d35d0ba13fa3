"""TD-MPC2's planner in small world models: plans equal a step-by-step reference."""

import math

import pytest
import torch
from factories import randomize
from torch import nn

from vwm.models.tdmpc2.q_ensemble import QEnsemble
from vwm.models.tdmpc2.tanh_gaussian_policy import TanhGaussianPolicy
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.rl.algorithms.tdmpc2_planner import TDMPC2Planner, TDMPC2PlannerConfig, TDMPC2PlannerNoise, draw_planner_noise

SMALL_CONFIG = TDMPC2PlannerConfig(horizon=3, samples=12, elites=5, proposals=4, iterations=2)


def make_networks(predict_termination: bool = False, dims: int = 2):
    torch.manual_seed(0)
    world = TDMPC2WorldModel(
        dims,
        vector_size=3,
        latent_size=16,
        width=12,
        encoder_width=10,
        num_bins=11,
        symlog_limit=3.0,
        predict_termination=predict_termination,
    )
    policy, critic = TanhGaussianPolicy(16, dims, 12), QEnsemble(16, dims, 3, 12, num_bins=11, symlog_limit=3.0)
    for network in (world, policy, critic):
        randomize(network.double())
    with torch.no_grad():
        policy.layers.output.weight.mul_(50)
    return world, policy, critic


def make_planner(
    config: TDMPC2PlannerConfig = SMALL_CONFIG, predict_termination: bool = False, dims: int = 2
) -> TDMPC2Planner:
    return TDMPC2Planner(*make_networks(predict_termination, dims), discount=0.9, config=config)


def reference_plan(planner: TDMPC2Planner, latent, mean, noise: TDMPC2PlannerNoise, explore: bool):
    """Plan for one problem, one sequence and one step at a time."""
    config, world, policy, critic = planner.config, planner.world, planner.policy, planner.critic
    proposals = []
    for p in range(config.proposals):
        z, sequence = latent, []
        for t in range(config.horizon):
            sequence.append(policy(z, noise.proposals[0, p, t]).action)
            z = world.next_latent(z, sequence[-1])
        proposals.append(torch.stack(sequence))
    std = torch.full_like(mean, config.max_std)
    for i in range(config.iterations):
        sampled = [(mean + std * noise.samples[i, 0, k]).clamp(-1, 1) for k in range(config.samples - config.proposals)]
        returns = []
        sequences = proposals + sampled
        for k, sequence in enumerate(sequences):
            z, total, alive = latent, 0.0, 1.0
            for t in range(config.horizon):
                total += alive * planner.discount**t * float(world.predict_reward(z, sequence[t]))
                z = world.next_latent(z, sequence[t])
                if world.termination_head is not None and float(world.termination_logits(z)) > 0:
                    alive = 0.0
            action = policy(z, noise.final_actions[i, 0, k]).action
            values = [
                float(critic.values(z[None], action[None])[member, 0]) for member in noise.member_pairs[i].tolist()
            ]
            returns.append(total + alive * planner.discount**config.horizon * sum(values) / 2)
        elites = sorted(range(len(returns)), key=lambda k: -returns[k])[: config.elites]
        scores = [math.exp(config.temperature * (returns[k] - returns[elites[0]])) for k in elites]
        scores = [score / sum(scores) for score in scores]
        mean = sum(score * sequences[k] for score, k in zip(scores, elites, strict=True))
        variance = sum(score * (sequences[k] - mean) ** 2 for score, k in zip(scores, elites, strict=True))
        std = variance.sqrt().clamp(config.min_std, config.max_std)
    perturbed = [math.log(score) + float(g) for score, g in zip(scores, noise.elite[0], strict=True)]
    action = sequences[elites[max(range(len(elites)), key=lambda e: perturbed[e])]][0]
    return (action + std[0] * noise.action[0] if explore else action).clamp(-1, 1), mean


@pytest.mark.parametrize("predict_termination", [False, True])
@pytest.mark.parametrize("explore", [False, True])
def test_plans_equal_a_step_by_step_reference_of_the_paper(predict_termination, explore):
    planner = make_planner(predict_termination=predict_termination)
    latent = planner.world.encode(torch.randn(1, 1, 3))
    noise = draw_planner_noise(SMALL_CONFIG, planner.critic, 1, 2, latent)
    mean = torch.randn(1, 3, 2, dtype=torch.float64).clamp(-1, 1)
    with torch.no_grad():
        action, expected_mean = reference_plan(planner, latent[0], mean[0], noise, explore)
    plan = planner.plan(latent, mean, noise, explore)
    torch.testing.assert_close(plan[0][0], action)
    torch.testing.assert_close(plan[1][0], expected_mean)


def test_rewards_after_termination_do_not_count():
    planner = make_planner(predict_termination=True)
    latent = planner.world.encode(torch.randn(2, 1, 3))
    noise = draw_planner_noise(SMALL_CONFIG, planner.critic, 2, 2, latent)
    actions = torch.randn(2, 12, 3, 2, dtype=torch.float64).clamp(-1, 1)
    with torch.no_grad():
        planner.world.termination_head.output.weight.zero_()
        planner.world.termination_head.output.bias.fill_(1.0)  # every sequence terminates at its first step
    one_step = planner.estimate_returns(latent, actions, noise.final_actions[0], noise.member_pairs[0])
    torch.testing.assert_close(one_step, planner.world.predict_reward(latent[:, None], actions[:, :, 0]))


def test_plans_do_not_depend_on_the_batch():
    planner = make_planner()
    latent = planner.world.encode(torch.randn(3, 1, 3))
    mean = torch.randn(3, 3, 2, dtype=torch.float64).clamp(-1, 1)
    noise = draw_planner_noise(SMALL_CONFIG, planner.critic, 3, 2, latent)
    action, expected_mean = planner.plan(latent, mean, noise, explore=True)
    for i in range(3):
        index = slice(i, i + 1)
        own_noise = TDMPC2PlannerNoise(
            proposals=noise.proposals[index],
            samples=noise.samples[:, index],
            final_actions=noise.final_actions[:, index],
            member_pairs=noise.member_pairs,
            elite=noise.elite[index],
            action=noise.action[index],
        )
        alone = planner.plan(latent[index], mean[index], own_noise, explore=True)
        torch.testing.assert_close(alone, (action[index], expected_mean[index]))


class PointOnLine(nn.Module):
    """Actions move a point on a line; the reward is minus the square of its distance from 0.5."""

    def next_latent(self, latent, action):
        return latent + 0.3 * action

    def predict_reward(self, latent, action):
        return -10 * (self.next_latent(latent, action)[..., 0] - 0.5).square()

    def termination_logits(self, latent):
        return None


class ZeroCritic(nn.Module):
    def values(self, latent, action, member_indices):
        return torch.zeros(2, *latent.shape[:-1])

    def sample_member_pair(self, *shape):
        return torch.zeros(*shape, 2, dtype=torch.int64)


class ZeroPolicy(nn.Module):
    def sample_action(self, latent, noise):
        return torch.zeros_like(noise)


def test_finds_the_optimal_trajectory_in_a_linear_world():
    """From -0.4, 0.2 and 0.5 in steps of up to 0.3: as fast as possible, then stop."""
    torch.manual_seed(0)
    config = TDMPC2PlannerConfig(horizon=3, samples=256, elites=32, proposals=8, iterations=8, temperature=10.0)
    planner = TDMPC2Planner(PointOnLine(), ZeroPolicy(), ZeroCritic(), 1.0, config)
    latent = torch.tensor([[-0.4], [0.2], [0.5]])
    noise = draw_planner_noise(config, planner.critic, 3, 1, latent)
    action, expected_mean = planner.plan(latent, torch.zeros(3, 3, 1), noise, explore=False)
    optimal_actions = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(expected_mean[:, :, 0], optimal_actions, rtol=0, atol=0.15)
    torch.testing.assert_close(action[:, 0], optimal_actions[:, 0], rtol=0, atol=0.2)


def test_nan_returns_count_as_zero():
    planner = make_planner()
    with torch.no_grad():
        planner.world.reward_head.output.bias.fill_(float("nan"))
    latent = planner.world.encode(torch.randn(1, 1, 3))
    action, _ = planner.plan(
        latent, torch.zeros(1, 3, 2).double(), draw_planner_noise(SMALL_CONFIG, planner.critic, 1, 2, latent), False
    )
    assert action.isfinite().all()


def test_20_or_more_action_dimensions_add_two_iterations():
    assert TDMPC2PlannerConfig().num_iterations(19) == 6 and TDMPC2PlannerConfig().num_iterations(20) == 8
    planner = make_planner(dims=20)
    assert draw_planner_noise(SMALL_CONFIG, planner.critic, 1, 20, torch.zeros(1)).samples.shape == (4, 1, 8, 3, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be 1 or more, got 0"),
        ({"proposals": 513}, r"512 \(samples\) at most, got 513 and 64"),
        ({"elites": 600}, r"512 \(samples\) at most, got 24 and 600"),
        ({"min_std": 3.0}, r"min_std must lie in 0\.\.max_std"),
    ],
)
def test_rejects_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TDMPC2PlannerConfig(**settings)
