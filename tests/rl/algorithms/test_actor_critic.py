"""Actor and critic losses on a trajectory equal a float64 reference, and each network gets its own gradient."""

import pytest
import torch
import torch.nn.functional as F

from vwm.core.spaces import ActionSpace
from vwm.rl.algorithms.actor import ActorConfig
from vwm.rl.algorithms.actor_critic import ActorCritic, CriticConfig, ImaginedTrajectory

H, N, D = 4, 6, 8


def make_learner(
    actor: dict | None = None, critic: dict | None = None, kind: str = "discrete", **settings
) -> ActorCritic:
    torch.manual_seed(0)
    small = {"width": 16, "layers": 1}
    learner = ActorCritic(
        D, ActionSpace(kind, 3), ActorConfig(**{**small, **(actor or {})}), CriticConfig(**{**small, **(critic or {})}),
        **settings,
    ).double()  # fmt: skip
    for head in (learner.critic, learner.target_critic):  # two-hot heads start at zero and predict 0 everywhere
        torch.nn.init.normal_(head.output.weight, std=0.5)
        offset = (torch.arange(head.output.out_features) - head.output.out_features // 2).double() / 4
        head.output.bias.data = -offset.square()  # predictions of a few units, not of millions
    return learner


def make_trajectory(learner: ActorCritic) -> ImaginedTrajectory:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(H + 1, N, D, generator=generator, dtype=torch.float64)
    reward = torch.randn(H + 1, N, generator=generator, dtype=torch.float64)
    discount = torch.rand(H + 1, N, generator=generator, dtype=torch.float64)
    action = learner.actor(features[:-1]).sample()
    alive = torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=torch.float64)
    return ImaginedTrajectory(features, action, reward, discount, alive)


def reference_losses(learner: ActorCritic, trajectory: ImaginedTrajectory) -> tuple[float, float]:
    """REINFORCE and the critic's loss, one trajectory and time step at a time."""
    critic_config = learner.critic_config
    value = learner.critic.mean(learner.critic(trajectory.features))
    target_value = learner.target_critic.mean(learner.target_critic(trajectory.features))
    bootstrap = target_value if critic_config.target_network == "target" else value
    bootstrap, target_value = bootstrap.detach(), target_value.detach()
    returns = torch.zeros(H, N, dtype=torch.float64)
    for n in range(N):
        next_return = bootstrap[H, n]
        for t in reversed(range(H)):
            mixed = (1 - learner.lam) * bootstrap[t + 1, n] + learner.lam * next_return
            next_return = trajectory.reward[t + 1, n] + trajectory.discount[t + 1, n] * mixed
            returns[t, n] = next_return
    low, high = (float(torch.quantile(returns.flatten(), q)) for q in (0.05, 0.95))
    scale = max(1.0, high - low) if learner.normalize_returns else 1.0
    policy = learner.actor(trajectory.features[:-1])
    log_probabilities, entropy = policy.log_prob(trajectory.action), policy.entropy()
    outputs = learner.critic(trajectory.features)
    log_probabilities, entropy, outputs = log_probabilities.detach(), entropy.detach(), outputs.detach()
    actor_loss = critic_loss = 0.0
    for n in range(N):
        weight = float(trajectory.alive[n])
        for t in range(H):
            advantage = float(returns[t, n] - bootstrap[t, n]) / scale
            actor_loss -= weight * float(
                log_probabilities[t, n] * advantage + learner.actor_config.entropy_scale * entropy[t, n]
            )
            loss = learner.critic.loss(outputs[t, n], returns[t, n].detach())
            if critic_config.target_network == "regularizer":
                loss = loss + learner.critic.loss(outputs[t, n], target_value[t, n].detach())
            critic_loss += weight * float(loss)
            weight *= float(trajectory.discount[t, n])
    return actor_loss / (H * N), critic_loss / (H * N)


@pytest.mark.parametrize("target_network", ["regularizer", "target", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distribution", ["two_hot", "normal"])
def test_losses_equal_the_reference(target_network: str, normalize: bool, distribution: str) -> None:
    learner = make_learner(
        critic={"target_network": target_network, "distribution": distribution}, normalize_returns=normalize
    )
    trajectory = make_trajectory(learner)
    losses = learner.losses(trajectory, learner.actor(trajectory.features[:-1]))
    actor, critic = reference_losses(learner, trajectory)
    assert losses.actor_loss.item() == pytest.approx(actor, rel=2e-5)
    assert losses.critic_loss.item() == pytest.approx(critic, rel=2e-5)


def test_each_loss_has_gradients_in_its_own_network_only() -> None:
    learner = make_learner()
    trajectory = make_trajectory(learner)
    losses = learner.losses(trajectory, learner.actor(trajectory.features[:-1]))
    losses.actor_loss.backward()
    assert all(p.grad is not None for p in learner.actor.parameters())
    assert all(p.grad is None for p in learner.critic.parameters())
    losses.critic_loss.backward()
    assert all(p.grad is not None for p in learner.critic.parameters())
    assert all(p.grad is None for p in learner.target_critic.parameters())


def test_reinforce_learns_the_rewarded_action() -> None:
    """Action 2 is rewarded: with REINFORCE the actor learns to choose it."""
    learner = make_learner(actor={"entropy_scale": 0.0})
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


def test_gradients_through_the_dynamics_reach_the_actor() -> None:
    """The reward is the sum of the action; DreamerV1's actor loss increases the mean of the actions."""
    learner = make_learner(
        actor={"gradient": "dynamics", "continuous_distribution": "tanh_normal", "entropy_scale": 0.0, "init_std": 1.0},
        critic={"distribution": "normal", "target_network": "none"},
        kind="continuous",
        normalize_returns=False,
    )
    torch.nn.init.zeros_(learner.critic.output.weight)  # only rewards count
    start = torch.zeros(N, D, dtype=torch.float64)
    features, rewards = [start], [torch.zeros(N, dtype=torch.float64)]
    for _ in range(H):
        action = learner.actor(features[-1]).sample()
        features.append(features[-1] + F.pad(action, (0, D - 3)))
        rewards.append(action.sum(-1))
    stacked = torch.stack(features)
    trajectory = ImaginedTrajectory(
        stacked, torch.zeros(H, N, 3), torch.stack(rewards), torch.ones(H + 1, N).double(), torch.ones(N)
    )
    losses = learner.losses(trajectory, learner.actor(stacked[:-1].detach()))
    gradients = torch.autograd.grad(losses.actor_loss, list(learner.actor.parameters()))
    bias = gradients[-1]
    assert (bias[:3] < 0).all()  # a larger mean has a higher return


def test_the_target_critic_tracks_the_critic() -> None:
    ema, hard = make_learner(), make_learner(critic={"target_network": "target", "target_rate": 1.0, "target_every": 3})
    start = [p.clone() for p in ema.target_critic.parameters()]
    ema.update_target()
    for p, s, f in zip(ema.target_critic.parameters(), start, ema.critic.parameters(), strict=True):
        assert torch.allclose(p, s + 0.02 * (f - s))
    for update in range(1, 4):
        hard.update_target()
        equal = all(
            torch.equal(s, f) for s, f in zip(hard.target_critic.parameters(), hard.critic.parameters(), strict=True)
        )
        assert equal == (update == 3)


def test_rejects_dynamics_gradients_for_discrete_actions() -> None:
    with pytest.raises(ValueError, match="discrete actions have no gradient"):
        make_learner(actor={"gradient": "dynamics"})
