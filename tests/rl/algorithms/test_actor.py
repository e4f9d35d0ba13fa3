"""Actors and their action distributions, compared with torch.distributions."""

import pytest
import torch
from torch import distributions as D

from vwm.core.spaces import ActionSpace
from vwm.rl.algorithms.actor import (
    Actor,
    ActorConfig,
    CategoricalActionDistribution,
    NormalActionDistribution,
    TanhNormalActionDistribution,
)


def test_categorical_actions_equal_torchs_mixed_with_the_uniform_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5)
    policy = CategoricalActionDistribution(logits, unimix=0.1)
    reference = D.Categorical(0.9 * logits.double().softmax(-1) + 0.1 / 5)
    action = torch.tensor([0, 4, 2])
    assert torch.allclose(policy.log_prob(action).double(), reference.log_prob(action), atol=1e-6)
    assert torch.allclose(policy.entropy().double(), reference.entropy(), atol=1e-6)
    samples = CategoricalActionDistribution(logits[:1].expand(20_000, 5), unimix=0.1).sample()
    frequencies = torch.bincount(samples, minlength=5) / 20_000
    assert (frequencies - reference.probs[0]).abs().max() < 0.015
    assert torch.equal(policy.mode(), logits.argmax(-1))


def test_normal_and_tanh_normal_actions_equal_torchs() -> None:
    torch.manual_seed(0)
    mean, std = torch.randn(4, 2), torch.rand(4, 2) + 0.1
    action = torch.randn(4, 2)
    reference = D.Independent(D.Normal(mean, std), 1)
    assert torch.allclose(NormalActionDistribution(mean, std).log_prob(action), reference.log_prob(action), atol=1e-5)
    assert torch.allclose(NormalActionDistribution(mean, std).entropy(), reference.entropy(), atol=1e-5)
    tanh_normal = D.Independent(D.TransformedDistribution(D.Normal(mean, std), D.TanhTransform()), 1)
    action = torch.rand(4, 2) * 1.8 - 0.9
    assert torch.allclose(
        TanhNormalActionDistribution(mean, std).log_prob(action), tanh_normal.log_prob(action), atol=1e-4
    )


def test_kl_divergences_equal_torchs_in_the_same_direction() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 5)
    kl = D.kl_divergence(D.Categorical(logits=first), D.Categorical(logits=second))
    assert torch.allclose(
        CategoricalActionDistribution(first).kl_divergence(CategoricalActionDistribution(second)), kl, atol=1e-6
    )
    assert not torch.allclose(
        CategoricalActionDistribution(second).kl_divergence(CategoricalActionDistribution(first)), kl, atol=1e-3
    )
    mean, std = torch.randn(2, 4, 2), torch.rand(2, 4, 2) + 0.1
    normals = [D.Independent(D.Normal(m, s), 1) for m, s in zip(mean, std, strict=True)]
    for kind in (NormalActionDistribution, TanhNormalActionDistribution):
        divergence = kind(mean[0], std[0]).kl_divergence(kind(mean[1], std[1]))
        assert torch.allclose(divergence, D.kl_divergence(*normals), rtol=1e-4)


def test_the_tanh_normal_entropy_estimate_is_unbiased() -> None:
    torch.manual_seed(0)
    mean, std = torch.full((200_000, 1), 0.3), torch.full((200_000, 1), 0.8)
    policy = TanhNormalActionDistribution(mean, std)
    monte_carlo = -policy.log_prob(policy.sample()).mean()
    assert abs(policy.entropy().mean() - monte_carlo) < 0.01


def test_gradients_flow_through_samples() -> None:
    mean = torch.zeros(1, 2, requires_grad=True)
    TanhNormalActionDistribution(mean, torch.ones(1, 2)).sample().sum().backward()
    assert mean.grad is not None and (mean.grad > 0).all()


@pytest.mark.parametrize("continuous", ["bounded_normal", "tanh_normal"])
def test_new_continuous_actors_have_wide_distributions(continuous: str) -> None:
    torch.manual_seed(0)
    actor = Actor(8, ActionSpace("continuous", 3), ActorConfig(continuous_distribution=continuous, width=16, layers=1))
    policy = actor(torch.randn(4096, 8))
    action = policy.sample().clamp(-1, 1)
    assert action.shape == (4096, 3) and action.std() > 0.5 and action.mean().abs() < 0.05


def test_rejects_an_unknown_action_distribution() -> None:
    with pytest.raises(ValueError, match="continuous_distribution='beta'"):
        Actor(8, ActionSpace("continuous", 3), ActorConfig(continuous_distribution="beta"))
