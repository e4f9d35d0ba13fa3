"""Losses of imagined policies against their definitions, a way and a moment at a time in float64."""

import math

import pytest
import torch

from vwm.core.spaces import ActionSpace
from vwm.rl.algorithms.actor import ActorConfig, CategoricalActionDistribution
from vwm.rl.algorithms.actor_critic import ActorCritic, CriticConfig, ImaginedTrajectory
from vwm.rl.algorithms.imagined_rollout import ImaginedRollout, imagination_losses
from vwm.rl.algorithms.policy_objectives import PMPOObjective, ReinforceObjective

H, N, D, GAMMA = 5, 7, 4, 0.9


class Given:
    """A policy over given features, with a prior."""

    def __init__(self, slow: str = "regularizer") -> None:
        torch.manual_seed(0)
        config = ActorConfig(width=8, layers=1, unimix=0.0)
        critic = CriticConfig(width=8, layers=1, target_network=slow)
        self.actor_critic = ActorCritic(D, ActionSpace("discrete", 3), config, critic).double()
        with torch.no_grad():
            for weight in self.actor_critic.parameters():
                weight.add_(torch.randn_like(weight) / 3)
        self.prior_actor = torch.randn(H, N, 3, dtype=torch.float64)

    def encode_sequence(self, carry, observations):
        return carry, observations

    def prior(self, features):
        return CategoricalActionDistribution(self.prior_actor)


def dreamt() -> ImaginedRollout:
    """Ways of which one ends at moment 2, and one at the last."""
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


def returns_by_hand(value: list[list[float]], ways: ImaginedRollout, trace: float) -> list[list[float]]:
    """Each way from its last moment backwards; None after an end."""
    found = [[math.nan] * N for _ in range(H)]
    for n in range(N):
        ahead = value[H][n]
        for t in reversed(range(H)):
            rest = 0.0 if ways.terminated[t + 1, n] else (1 - trace) * value[t + 1][n] + trace * ahead
            ahead = float(ways.reward[t + 1, n]) + GAMMA * rest
            found[t][n] = ahead
    return found


def lives(ways: ImaginedRollout, t: int, n: int) -> bool:
    return not bool(ways.terminated[: t + 1, n].any())


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.3), (0.8, 0.0)])
@pytest.mark.parametrize("slow", ["regularizer", "target"])
def test_pmpo_is_its_definition(alpha: float, beta: float, slow: str) -> None:
    student, ways = Given(slow), dreamt()
    behavior = student.actor_critic
    learnt = imagination_losses(student, PMPOObjective(alpha, beta), ways, GAMMA)
    with torch.no_grad():
        word = behavior.target_critic if slow == "target" else behavior.critic
        value = word.mean(word(ways.observation)).tolist()
        logits = behavior.actor.output(behavior.actor.body(ways.observation[:-1]))
        said, slow_says = (
            behavior.critic(ways.observation),
            behavior.target_critic.mean(behavior.target_critic(ways.observation)),
        )
    returns = returns_by_hand(value, ways, behavior.lam)
    better, worse, apart, critic = [], [], [], []
    for n in range(N):
        for t in range(H):
            if not lives(ways, t, n):
                continue
            log = [float(x) for x in logits[t, n].double().log_softmax(-1)]
            prior = [float(x) for x in student.prior_actor[t, n].log_softmax(-1)]
            (better if returns[t][n] >= value[t][n] else worse).append(log[int(ways.action[t, n])])
            apart.append(sum(math.exp(p) * (p - q) for p, q in zip(log, prior, strict=True)))
            loss = behavior.critic.loss(said[t, n], torch.tensor(returns[t][n], dtype=torch.float64))
            if slow == "regularizer":
                loss = loss + behavior.critic.loss(said[t, n], slow_says[t, n])
            critic.append(float(loss))
    assert better and worse and len(apart) == H * N - (H - 2)
    actor = (1 - alpha) * sum(worse) / len(worse) - alpha * sum(better) / len(better) + beta * sum(apart) / len(apart)
    assert learnt.actor_loss.item() == pytest.approx(actor, rel=2e-5)
    assert learnt.critic_loss.item() == pytest.approx(sum(critic) / len(critic), rel=2e-5)
    assert learnt.logs["prior_kl"].item() == pytest.approx(sum(apart) / len(apart), rel=2e-5)
    counted = [(t, n) for t in range(H) for n in range(N) if lives(ways, t, n)]
    assert all(learnt.returns[t, n].item() == pytest.approx(returns[t][n], rel=1e-5) for t, n in counted)


@pytest.mark.parametrize("objective", [PMPOObjective(), ReinforceObjective(beta=0.1)])
def test_rewards_after_a_termination_do_not_count(objective) -> None:
    student, ways = Given(), dreamt()
    first = imagination_losses(student, objective, ways, GAMMA)
    reward, features, action = ways.reward.clone(), ways.observation.clone(), ways.action.clone()
    reward[3:, 0], features[2:, 0], action[2:, 0] = 9, 9, 0
    student = Given()  # the range of returns is an average over updates
    student.prior_actor[2:, 0] += torch.tensor([1.0, 2, 3])
    second = imagination_losses(
        student, objective, ways._replace(reward=reward, observation=features, action=action), GAMMA
    )
    if isinstance(objective, PMPOObjective):  # the range of returns sees all of them
        assert first.actor_loss.item() == pytest.approx(second.actor_loss.item(), rel=1e-6)
    assert first.critic_loss.item() == pytest.approx(second.critic_loss.item(), rel=1e-6)


def test_the_size_of_an_advantage_means_nothing_to_pmpo() -> None:
    student, ways = Given(), dreamt()
    torch.nn.init.zeros_(student.actor_critic.critic.output.weight)
    torch.nn.init.zeros_(student.actor_critic.critic.output.bias)
    small, large = (
        imagination_losses(student, PMPOObjective(), ways._replace(reward=s * ways.reward), GAMMA).actor_loss
        for s in (1, 1000)
    )
    assert small.item() == large.item()


def test_reinforce_is_dreamers_with_a_divergence() -> None:
    ways = dreamt()._replace(terminated=torch.zeros(H + 1, N, dtype=torch.bool))
    student = Given()
    learnt = imagination_losses(student, ReinforceObjective(beta=0.2), ways, GAMMA)
    student = Given()
    policy = student.actor_critic.actor(ways.observation[:-1])
    live = torch.full((H + 1, N), GAMMA, dtype=torch.float64)
    way = ImaginedTrajectory(ways.observation, ways.action, ways.reward, live, torch.ones(N, dtype=torch.float64))
    plain = student.actor_critic.losses(way, policy)
    apart = policy.kl_divergence(CategoricalActionDistribution(student.prior_actor)).mean()
    assert learnt.actor_loss.item() == pytest.approx((plain.actor_loss + 0.2 * apart).item(), rel=1e-6)
    assert learnt.critic_loss.item() == pytest.approx(plain.critic_loss.item(), rel=1e-6)


def test_weights_that_make_no_sense_are_told() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5 and 0\.3"):
        PMPOObjective(1.5)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        ReinforceObjective(-1)
