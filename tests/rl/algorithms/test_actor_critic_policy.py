"""Policies in worlds: the way through time is one, however it is gone, and clones are clones."""

import pytest
import torch
from factories import diffusion_world, randomize

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.dit.policy_heads import PolicyRewardHeads
from vwm.rl.algorithms.actor_critic import ActorConfig
from vwm.rl.algorithms.actor_critic_policy import (
    BinnedActionDistribution,
    ClonedActorCriticPolicy,
    FeatureActorCriticPolicy,
    FrameActorCriticPolicy,
)

PICTURES = EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), ActionSpace("discrete", 4))
VECTORS = EnvSpaces(ObservationSpace.of_shape((32,)), ActionSpace("discrete", 4))


def frame_policy(**changes) -> FrameActorCriticPolicy:
    torch.manual_seed(0)
    return FrameActorCriticPolicy(
        diffusion_world(), PICTURES, conv_channels=4, channel_multipliers=(1, 2), width=8, **changes
    )


def cloned_world(dims: int = 0):
    world = diffusion_world(action_dims=dims)
    torch.manual_seed(1)
    world.policy = randomize(
        PolicyRewardHeads(32, 0 if dims else 4, dims, action_bins=5, hidden=8, length=2, bins=11)
    ).eval()
    return world


def test_stepwise_equals_parallel() -> None:
    policy = frame_policy()
    pictures = torch.randint(256, (6, 3, 8, 8, 3), dtype=torch.uint8)
    end, features = policy.encode_sequence(policy.init_carry(3), pictures)
    carry = policy.init_carry(3)
    for t in range(6):
        carry, here = policy.encode_step(carry, pictures[t], torch.zeros(3, dtype=torch.bool))
        assert torch.allclose(here, features[t], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(carry, end, strict=True))
    begun, _ = policy.encode_sequence(policy.init_carry(3), pictures[:2])
    assert torch.allclose(policy.encode_sequence(begun, pictures[2:])[1], features[2:], atol=1e-6)


def test_an_episodes_beginning_forgets_the_one_before() -> None:
    policy = frame_policy()
    pictures = torch.randint(256, (3, 2, 8, 8, 3), dtype=torch.uint8)
    carry, _ = policy.encode_sequence(policy.init_carry(2), pictures[:2])
    _, features = policy.encode_step(carry, pictures[2], torch.tensor([True, False]))
    _, fresh = policy.encode_sequence(policy.init_carry(2), pictures[2:])
    assert torch.allclose(features[0], fresh[0, 0]) and not torch.allclose(features[1], fresh[0, 1])


@pytest.mark.parametrize("greedy", [True, False])
def test_who_is_greedy_does_what_is_likeliest(greedy: bool) -> None:
    torch.manual_seed(0)
    policy = FeatureActorCriticPolicy(diffusion_world(), VECTORS, ActorConfig(width=8, layers=1), deterministic=greedy)
    features = torch.randn(64, 32)
    time_step = TimeStep(features, *(torch.zeros(64, dtype=torch.bool) for _ in range(4)))
    likeliest = policy.actor_critic.actor(features).mode()
    assert torch.equal(policy.act((), time_step, explore=False).action, likeliest) == greedy
    assert not torch.equal(policy.act((), time_step, explore=True).action, likeliest)


@pytest.mark.parametrize("dims", [0, 2])
def test_a_clone_starts_equal_to_its_source(dims: int) -> None:
    world = cloned_world(dims)
    policy = ClonedActorCriticPolicy(world, EnvSpaces(ObservationSpace.of_shape((32,)), world.spec.actions))
    features = torch.randn(5, 3, 32)
    mine, prior = policy.actor_critic.actor(features), policy.prior(features)
    assert (mine.kl_divergence(prior) == 0).all() and isinstance(mine, BinnedActionDistribution) == bool(dims)
    action = mine.sample()
    logits = world.policy.policy(features).log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    if dims:
        assert action.shape == (5, 3, 2) and torch.equal(
            world.policy.decode_action(world.policy.encode_action(action)), action
        )
        found = logits.gather(-1, world.policy.encode_action(action)[..., None])[..., 0].sum(-1)
        entropy = entropy.sum(-1)
    else:
        found = logits.gather(-1, action[..., None])[..., 0]
    assert torch.allclose(mine.log_prob(action), found, atol=1e-6)
    assert torch.allclose(mine.entropy(), entropy, atol=1e-5)
    # The policy learns; the prior and the bundle's own heads stay.
    before = [weight.clone() for weight in world.policy.parameters()]
    (-mine.log_prob(action).sum()).backward()
    learning = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert learning and all(name.startswith("actor_critic.actor.heads") for name in learning)
    torch.optim.SGD([w for w in policy.parameters() if w.requires_grad], 0.1).step()
    assert (policy.actor_critic.actor(features).kl_divergence(policy.prior(features)) > 0).any()
    assert all(torch.equal(a, b) for a, b in zip(before, world.policy.parameters(), strict=True))


def test_policies_tell_what_they_cannot_read() -> None:
    with pytest.raises(ValueError, match="takes vectors"):
        FeatureActorCriticPolicy(diffusion_world(), PICTURES)
    with pytest.raises(ValueError, match="takes images"):
        FrameActorCriticPolicy(diffusion_world(), VECTORS)
    with pytest.raises(ValueError, match="no cloned policy"):
        ClonedActorCriticPolicy(diffusion_world(), VECTORS)
    with pytest.raises(ValueError, match="takes 32 features, but observations are \\[48\\]"):
        ClonedActorCriticPolicy(cloned_world(), EnvSpaces(ObservationSpace.of_shape((48,)), ActionSpace("discrete", 4)))
