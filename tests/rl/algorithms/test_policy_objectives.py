"""Losses of imagined policies against their definitions, one trajectory and time step at a time in float64."""

import math

import pytest
import torch

from vwm.core.spaces import ActionSpace
from vwm.rl.algorithms.actor import ActorConfig, CategoricalActionDistribution
from vwm.rl.algorithms.actor_critic import ActorCritic, CriticConfig, ImaginedTrajectory
from vwm.rl.algorithms.imagined_rollout import ImaginedRollout, imagination_losses
from vwm.rl.algorithms.policy_objectives import AdvantageObjective, PMPOObjective, ReinforceObjective

H, N, D, GAMMA = 5, 7, 4, 0.9


class FixedFeaturesPolicy:
    """A policy whose features are the observations, with a prior."""

    def __init__(self, target_network: str = "regularizer") -> None:
        torch.manual_seed(0)
        config = ActorConfig(width=8, layers=1, unimix=0.0)
        critic = CriticConfig(width=8, layers=1, target_network=target_network)
        self.actor_critic = ActorCritic(D, ActionSpace("discrete", 3), config, critic).double()
        with torch.no_grad():
            for weight in self.actor_critic.parameters():
                weight.add_(torch.randn_like(weight) / 3)
        self.prior_actor = torch.randn(H, N, 3, dtype=torch.float64)

    def encode_sequence(self, carry, observations):
        return carry, observations

    def prior(self, features):
        return CategoricalActionDistribution(self.prior_actor)


def make_rollout() -> ImaginedRollout:
    """Rollouts of which one ends at time step 2, and one at the last."""
    torch.manual_seed(1)
    terminated = torch.zeros(H + 1, N, dtype=torch.bool)
    terminated[2, 0] = terminated[H, 1] = True
    features = torch.randn(H + 1, N, D, dtype=torch.float64)
    return ImaginedRollout(
        (),
        features,
        torch.randint(3, (H, N)),
        torch.randn(H + 1, N, dtype=torch.float64),
        terminated,
        torch.zeros(H + 1, N),
    )


def reference_returns(value: list[list[float]], rollout: ImaginedRollout, lam: float) -> list[list[float]]:
    """Returns of each rollout, computed backward; None after its end."""
    returns = [[math.nan] * N for _ in range(H)]
    for n in range(N):
        next_return = value[H][n]
        for t in reversed(range(H)):
            bootstrap = 0.0 if rollout.terminated[t + 1, n] else (1 - lam) * value[t + 1][n] + lam * next_return
            next_return = float(rollout.reward[t + 1, n]) + GAMMA * bootstrap
            returns[t][n] = next_return
    return returns


def is_alive(rollout: ImaginedRollout, t: int, n: int) -> bool:
    return not bool(rollout.terminated[: t + 1, n].any())


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.3), (0.8, 0.0)])
@pytest.mark.parametrize("target_network", ["regularizer", "target"])
def test_pmpo_losses_equal_the_reference(alpha: float, beta: float, target_network: str) -> None:
    policy, rollout = FixedFeaturesPolicy(target_network), make_rollout()
    actor_critic = policy.actor_critic
    losses = imagination_losses(policy, PMPOObjective(alpha, beta), rollout, GAMMA)
    with torch.no_grad():
        bootstrap_critic = actor_critic.target_critic if target_network == "target" else actor_critic.critic
        value = bootstrap_critic.mean(bootstrap_critic(rollout.observation)).tolist()
        logits = actor_critic.actor.output(actor_critic.actor.body(rollout.observation[:-1]))
        outputs, target_values = (
            actor_critic.critic(rollout.observation),
            actor_critic.target_critic.mean(actor_critic.target_critic(rollout.observation)),
        )
    returns = reference_returns(value, rollout, actor_critic.lam)
    better, worse, prior_kl, critic = [], [], [], []
    for n in range(N):
        for t in range(H):
            if not is_alive(rollout, t, n):
                continue
            log_probs = [float(x) for x in logits[t, n].double().log_softmax(-1)]
            prior_log_probs = [float(x) for x in policy.prior_actor[t, n].log_softmax(-1)]
            (better if returns[t][n] >= value[t][n] else worse).append(log_probs[int(rollout.action[t, n])])
            prior_kl.append(sum(math.exp(p) * (p - q) for p, q in zip(log_probs, prior_log_probs, strict=True)))
            loss = actor_critic.critic.loss(outputs[t, n], torch.tensor(returns[t][n], dtype=torch.float64))
            if target_network == "regularizer":
                loss = loss + actor_critic.critic.loss(outputs[t, n], target_values[t, n])
            critic.append(float(loss))
    assert better and worse and len(prior_kl) == H * N - (H - 2)
    actor = (
        (1 - alpha) * sum(worse) / len(worse) - alpha * sum(better) / len(better) + beta * sum(prior_kl) / len(prior_kl)
    )
    assert losses.actor_loss.item() == pytest.approx(actor, rel=2e-5)
    assert losses.critic_loss.item() == pytest.approx(sum(critic) / len(critic), rel=2e-5)
    assert losses.logs["prior_kl"].item() == pytest.approx(sum(prior_kl) / len(prior_kl), rel=2e-5)
    alive_steps = [(t, n) for t in range(H) for n in range(N) if is_alive(rollout, t, n)]
    assert all(losses.returns[t, n].item() == pytest.approx(returns[t][n], rel=1e-5) for t, n in alive_steps)


@pytest.mark.parametrize("objective", [PMPOObjective(), ReinforceObjective(beta=0.1)])
def test_rewards_after_termination_do_not_count(objective) -> None:
    policy, rollout = FixedFeaturesPolicy(), make_rollout()
    first = imagination_losses(policy, objective, rollout, GAMMA)
    reward, features, action = rollout.reward.clone(), rollout.observation.clone(), rollout.action.clone()
    reward[3:, 0], features[2:, 0], action[2:, 0] = 9, 9, 0
    policy = FixedFeaturesPolicy()  # a new one, as the range of returns is an average over updates
    policy.prior_actor[2:, 0] += torch.tensor([1.0, 2, 3])
    second = imagination_losses(
        policy, objective, rollout._replace(reward=reward, observation=features, action=action), GAMMA
    )
    if isinstance(objective, PMPOObjective):  # REINFORCE also scales by the range of all returns
        assert first.actor_loss.item() == pytest.approx(second.actor_loss.item(), rel=1e-6)
    assert first.critic_loss.item() == pytest.approx(second.critic_loss.item(), rel=1e-6)


def test_pmpo_ignores_the_scale_of_advantages() -> None:
    policy, rollout = FixedFeaturesPolicy(), make_rollout()
    torch.nn.init.zeros_(policy.actor_critic.critic.output.weight)
    torch.nn.init.zeros_(policy.actor_critic.critic.output.bias)
    small, large = (
        imagination_losses(policy, PMPOObjective(), rollout._replace(reward=s * rollout.reward), GAMMA).actor_loss
        for s in (1, 1000)
    )
    assert small.item() == large.item()


def test_reinforce_adds_a_kl_divergence_to_dreamers_loss() -> None:
    rollout = make_rollout()._replace(terminated=torch.zeros(H + 1, N, dtype=torch.bool))
    policy = FixedFeaturesPolicy()
    losses = imagination_losses(policy, ReinforceObjective(beta=0.2), rollout, GAMMA)
    policy = FixedFeaturesPolicy()
    distribution = policy.actor_critic.actor(rollout.observation[:-1])
    live = torch.full((H + 1, N), GAMMA, dtype=torch.float64)
    trajectory = ImaginedTrajectory(
        rollout.observation, rollout.action, rollout.reward, live, torch.ones(N, dtype=torch.float64)
    )
    plain = policy.actor_critic.losses(trajectory, distribution)
    prior_kl = distribution.kl_divergence(CategoricalActionDistribution(policy.prior_actor)).mean()
    assert losses.actor_loss.item() == pytest.approx((plain.actor_loss + 0.2 * prior_kl).item(), rel=1e-6)
    assert losses.critic_loss.item() == pytest.approx(plain.critic_loss.item(), rel=1e-6)


def test_rejects_weights_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5 and 0\.3"):
        PMPOObjective(1.5)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        ReinforceObjective(-1)


@pytest.mark.parametrize("sign", [True, False])
def test_advantage_objective_equals_its_definition(sign):
    """Plain means over the time steps before an end, of returns that are bootstrapped at the horizon only."""
    policy, rollout = FixedFeaturesPolicy(), make_rollout()
    objective = AdvantageObjective(sign_rewards=sign, value_scale=0.7)
    losses = imagination_losses(policy, objective, rollout, GAMMA)
    actor_critic = policy.actor_critic
    with torch.no_grad():
        value = actor_critic.value(rollout.observation).tolist()
        log_probs = actor_critic.actor(rollout.observation[:-1]).log_probabilities
    rewards = rollout.reward.sign() if sign else rollout.reward
    returns = reference_returns(value, rollout._replace(reward=rewards), actor_critic.lam)
    scale = actor_critic.actor_config.entropy_scale
    actor, critic, count = 0.0, 0.0, 0
    for n in range(N):
        for t in range(H):
            row = log_probs[t, n].tolist()
            entropy = -sum(math.exp(x) * x for x in row)
            actor -= row[int(rollout.action[t, n])] * (returns[t][n] - value[t][n]) + scale * entropy
            critic += 0.7 * (value[t][n] - returns[t][n]) ** 2
            count += 1
            if rollout.terminated[t + 1, n]:
                break
    assert losses.actor_loss.item() == pytest.approx(actor / count, rel=1e-6)  # its probabilities are float32
    assert losses.critic_loss.item() == pytest.approx(critic / count, rel=1e-6)
    (losses.actor_loss + losses.critic_loss).backward()
    assert all(weight.grad is not None for weight in actor_critic.critic.parameters())
