"""Losses of actor and critic on a trajectory, against float64 written out, and which network gets which gradient."""

import pytest
import torch
import torch.nn.functional as F

from vwm.core.spaces import ActionSpace
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import ActorCritic, CriticConfig, ImaginedTrajectory

H, N, D = 4, 6, 8


def make(actor: dict | None = None, critic: dict | None = None, kind: str = "discrete", **rest) -> ActorCritic:
    torch.manual_seed(0)
    small = {"width": 16, "layers": 1}
    made = ActorCritic(
        D, ActionSpace(kind, 3), ActorConfig(**{**small, **(actor or {})}), CriticConfig(**{**small, **(critic or {})}),
        **rest,
    ).double()  # fmt: skip
    for head in (made.critic, made.target_critic):  # two-hot heads begin at zero, where every word is 0
        torch.nn.init.normal_(head.output.weight, std=0.5)
        far = (torch.arange(head.output.out_features) - head.output.out_features // 2).double() / 4
        head.output.bias.data = -far.square()  # numbers of a few units, not of millions
    return made


def make_trajectory(learner: ActorCritic) -> ImaginedTrajectory:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(H + 1, N, D, generator=generator, dtype=torch.float64)
    reward = torch.randn(H + 1, N, generator=generator, dtype=torch.float64)
    discount = torch.rand(H + 1, N, generator=generator, dtype=torch.float64)
    action = learner.actor(features[:-1]).sample()
    alive = torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=torch.float64)
    return ImaginedTrajectory(features, action, reward, discount, alive)


def by_hand(learner: ActorCritic, given: ImaginedTrajectory) -> tuple[float, float]:
    """REINFORCE and the critic's loss, one trajectory and time step at a time."""
    critic = learner.critic_config
    value = learner.critic.mean(learner.critic(given.features))
    slow = learner.target_critic.mean(learner.target_critic(given.features))
    bootstrap = slow if critic.target_network == "target" else value
    bootstrap, slow = bootstrap.detach(), slow.detach()
    returns = torch.zeros(H, N, dtype=torch.float64)
    for n in range(N):
        next_return = bootstrap[H, n]
        for t in reversed(range(H)):
            mixed = (1 - learner.lam) * bootstrap[t + 1, n] + learner.lam * next_return
            next_return = given.reward[t + 1, n] + given.discount[t + 1, n] * mixed
            returns[t, n] = next_return
    low, high = (float(torch.quantile(returns.flatten(), q)) for q in (0.05, 0.95))
    scale = max(1.0, high - low) if learner.normalize_returns else 1.0
    policy = learner.actor(given.features[:-1])
    log_probabilities, entropy = policy.log_prob(given.action), policy.entropy()
    outputs = learner.critic(given.features)
    log_probabilities, entropy, outputs = log_probabilities.detach(), entropy.detach(), outputs.detach()
    actor_loss = critic_loss = 0.0
    for n in range(N):
        weight = float(given.alive[n])
        for t in range(H):
            advantage = float(returns[t, n] - bootstrap[t, n]) / scale
            actor_loss -= weight * float(
                log_probabilities[t, n] * advantage + learner.actor_config.entropy_scale * entropy[t, n]
            )
            loss = learner.critic.loss(outputs[t, n], returns[t, n].detach())
            if critic.target_network == "regularizer":
                loss = loss + learner.critic.loss(outputs[t, n], slow[t, n].detach())
            critic_loss += weight * float(loss)
            weight *= float(given.discount[t, n])
    return actor_loss / (H * N), critic_loss / (H * N)


@pytest.mark.parametrize("slow", ["regularizer", "target", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("says", ["two_hot", "normal"])
def test_losses_are_those_of_the_definition(slow: str, normalize: bool, says: str) -> None:
    learner = make(critic={"target_network": slow, "distribution": says}, normalize_returns=normalize)
    given = make_trajectory(learner)
    losses = learner.losses(given, learner.actor(given.features[:-1]))
    actor, critic = by_hand(learner, given)
    assert losses.actor_loss.item() == pytest.approx(actor, rel=2e-5)
    assert losses.critic_loss.item() == pytest.approx(critic, rel=2e-5)


def test_each_loss_moves_its_own_network() -> None:
    learner = make()
    given = make_trajectory(learner)
    losses = learner.losses(given, learner.actor(given.features[:-1]))
    losses.actor_loss.backward()
    assert all(p.grad is not None for p in learner.actor.parameters())
    assert all(p.grad is None for p in learner.critic.parameters())
    losses.critic_loss.backward()
    assert all(p.grad is not None for p in learner.critic.parameters())
    assert all(p.grad is None for p in learner.target_critic.parameters())


def test_a_better_action_becomes_more_likely() -> None:
    """Action 2 is rewarded: with REINFORCE the actor learns to choose it."""
    learner = make(actor={"entropy_scale": 0.0})
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    features = torch.zeros(H + 1, 64, D, dtype=torch.float64)
    for _ in range(40):
        policy = learner.actor(features[:-1])
        action = policy.sample()
        reward = torch.cat((torch.zeros(1, 64), (action == 2).float())).double()
        discount = torch.full_like(reward, 0.9)
        losses = learner.losses(ImaginedTrajectory(features, action, reward, discount, torch.ones(64)), policy)
        optimizer.zero_grad()
        (losses.actor_loss + losses.critic_loss).backward()
        optimizer.step()
        learner.update_target()
    assert policy.log_prob(torch.full((H, 64), 2)).exp().mean() > 0.9


def test_through_the_world_the_gradient_reaches_the_actor() -> None:
    """The world pays what is done; v1's actor climbs it, and the critic's weights get nothing from the actor's loss."""
    learner = make(
        actor={"gradient": "dynamics", "continuous_distribution": "tanh_normal", "entropy_scale": 0.0, "init_std": 1.0},
        critic={"distribution": "normal", "target_network": "none"},
        kind="continuous",
        normalize_returns=False,
    )
    torch.nn.init.zeros_(learner.critic.output.weight)  # only what is paid counts
    before = torch.zeros(N, D, dtype=torch.float64)
    features, rewards = [before], [torch.zeros(N, dtype=torch.float64)]
    for _ in range(H):
        action = learner.actor(features[-1]).sample()
        features.append(features[-1] + F.pad(action, (0, D - 3)))
        rewards.append(action.sum(-1))
    seen = torch.stack(features)
    given = ImaginedTrajectory(
        seen, torch.zeros(H, N, 3), torch.stack(rewards), torch.ones(H + 1, N).double(), torch.ones(N)
    )
    losses = learner.losses(given, learner.actor(seen[:-1].detach()))
    gradients = torch.autograd.grad(losses.actor_loss, list(learner.actor.parameters()))
    bias = gradients[-1]
    assert (bias[:3] < 0).all()  # a larger mean earns more


def test_the_slow_copy_follows() -> None:
    average, hard = make(), make(critic={"target_network": "target", "target_rate": 1.0, "target_every": 3})
    start = [p.clone() for p in average.target_critic.parameters()]
    average.update_target()
    for p, s, f in zip(average.target_critic.parameters(), start, average.critic.parameters(), strict=True):
        assert torch.allclose(p, s + 0.02 * (f - s))
    for update in range(1, 4):
        hard.update_target()
        same = all(
            torch.equal(s, f) for s, f in zip(hard.target_critic.parameters(), hard.critic.parameters(), strict=True)
        )
        assert same == (update == 3)


def test_choices_have_no_gradient() -> None:
    with pytest.raises(ValueError, match="discrete actions have no gradient"):
        make(actor={"gradient": "dynamics"})
