"""Actor-critic policies: streaming equals parallel, and cloned policies start equal to their source."""

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

IMAGE_SPACES = EnvSpaces(ObservationSpace.of_shape((8, 8, 3)), ActionSpace("discrete", 4))
VECTOR_SPACES = EnvSpaces(ObservationSpace.of_shape((32,)), ActionSpace("discrete", 4))


def make_frame_policy(**changes) -> FrameActorCriticPolicy:
    torch.manual_seed(0)
    return FrameActorCriticPolicy(
        diffusion_world(), IMAGE_SPACES, conv_channels=4, channel_multipliers=(1, 2), width=8, **changes
    )


def make_cloned_world(dims: int = 0):
    world = diffusion_world(action_dims=dims)
    torch.manual_seed(1)
    world.policy = randomize(
        PolicyRewardHeads(32, 0 if dims else 4, dims, action_bins=5, hidden=8, length=2, bins=11)
    ).eval()
    return world


def test_streaming_equals_parallel() -> None:
    policy = make_frame_policy()
    frames = torch.randint(256, (6, 3, 8, 8, 3), dtype=torch.uint8)
    final_carry, features = policy.encode_sequence(policy.init_carry(3), frames)
    carry = policy.init_carry(3)
    for t in range(6):
        carry, step_features = policy.encode_step(carry, frames[t], torch.zeros(3, dtype=torch.bool))
        assert torch.allclose(step_features, features[t], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(carry, final_carry, strict=True))
    partial_carry, _ = policy.encode_sequence(policy.init_carry(3), frames[:2])
    assert torch.allclose(policy.encode_sequence(partial_carry, frames[2:])[1], features[2:], atol=1e-6)


def test_the_carry_is_reset_at_the_first_step_of_an_episode() -> None:
    policy = make_frame_policy()
    frames = torch.randint(256, (3, 2, 8, 8, 3), dtype=torch.uint8)
    carry, _ = policy.encode_sequence(policy.init_carry(2), frames[:2])
    _, features = policy.encode_step(carry, frames[2], torch.tensor([True, False]))
    _, fresh = policy.encode_sequence(policy.init_carry(2), frames[2:])
    assert torch.allclose(features[0], fresh[0, 0]) and not torch.allclose(features[1], fresh[0, 1])


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_policy_takes_the_mode_unless_exploring(deterministic: bool) -> None:
    torch.manual_seed(0)
    policy = FeatureActorCriticPolicy(
        diffusion_world(), VECTOR_SPACES, ActorConfig(width=8, layers=1), deterministic=deterministic
    )
    features = torch.randn(64, 32)
    time_step = TimeStep(features, *(torch.zeros(64, dtype=torch.bool) for _ in range(4)))
    mode = policy.actor_critic.actor(features).mode()
    assert torch.equal(policy.act((), time_step, explore=False).action, mode) == deterministic
    assert not torch.equal(policy.act((), time_step, explore=True).action, mode)


@pytest.mark.parametrize("dims", [0, 2])
def test_a_clone_starts_equal_to_its_source(dims: int) -> None:
    world = make_cloned_world(dims)
    policy = ClonedActorCriticPolicy(world, EnvSpaces(ObservationSpace.of_shape((32,)), world.spec.actions))
    features = torch.randn(5, 3, 32)
    distribution, prior = policy.actor_critic.actor(features), policy.prior(features)
    assert (distribution.kl_divergence(prior) == 0).all() and isinstance(
        distribution, BinnedActionDistribution
    ) == bool(dims)
    action = distribution.sample()
    logits = world.policy.policy(features).log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    if dims:
        assert action.shape == (5, 3, 2) and torch.equal(
            world.policy.decode_action(world.policy.encode_action(action)), action
        )
        log_prob = logits.gather(-1, world.policy.encode_action(action)[..., None])[..., 0].sum(-1)
        entropy = entropy.sum(-1)
    else:
        log_prob = logits.gather(-1, action[..., None])[..., 0]
    assert torch.allclose(distribution.log_prob(action), log_prob, atol=1e-6)
    assert torch.allclose(distribution.entropy(), entropy, atol=1e-5)
    # Training changes the policy, but neither the prior nor the bundle's heads.
    before = [weight.clone() for weight in world.policy.parameters()]
    (-distribution.log_prob(action).sum()).backward()
    trained = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert trained and all(name.startswith("actor_critic.actor.heads") for name in trained)
    torch.optim.SGD([w for w in policy.parameters() if w.requires_grad], 0.1).step()
    assert (policy.actor_critic.actor(features).kl_divergence(policy.prior(features)) > 0).any()
    assert all(torch.equal(a, b) for a, b in zip(before, world.policy.parameters(), strict=True))


def test_rejects_observations_and_worlds_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="takes vectors"):
        FeatureActorCriticPolicy(diffusion_world(), IMAGE_SPACES)
    with pytest.raises(ValueError, match="takes images"):
        FrameActorCriticPolicy(diffusion_world(), VECTOR_SPACES)
    with pytest.raises(ValueError, match="no cloned policy"):
        ClonedActorCriticPolicy(diffusion_world(), VECTOR_SPACES)
    with pytest.raises(ValueError, match="takes 32 features, but observations are \\[48\\]"):
        ClonedActorCriticPolicy(
            make_cloned_world(), EnvSpaces(ObservationSpace.of_shape((48,)), ActionSpace("discrete", 4))
        )
