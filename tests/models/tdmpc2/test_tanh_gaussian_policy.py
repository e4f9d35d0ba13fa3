import math

import pytest
import torch

from vwm.models.tdmpc2.tanh_gaussian_policy import TanhGaussianPolicy


def make_policy() -> TanhGaussianPolicy:
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(8, 2, 16, log_std_min=-5.0, log_std_max=1.0).double()
    with torch.no_grad():
        policy.layers.output.weight.mul_(100)
    return policy


def test_actions_are_tanh_gaussian_and_the_entropy_is_estimated_before_tanh():
    policy = make_policy()
    latent, noise = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    sample = policy(latent, noise)
    outputs = policy.layers(latent)
    std = (-5 + 3 * (outputs[:, 2:].tanh() + 1)).exp()
    assert (std > math.exp(-5)).all() and (std < math.exp(1)).all() and std.std() > 0
    raw = outputs[:, :2] + std * noise
    torch.testing.assert_close(sample.action, raw.tanh())
    torch.testing.assert_close(sample.mean, outputs[:, :2].tanh())
    density = torch.distributions.Normal(outputs[:, :2], std).log_prob(raw).sum(-1)
    torch.testing.assert_close(sample.entropy, -2 * density)
    with torch.no_grad():
        assert torch.equal(policy.sample_action(latent, noise), sample.action)


def test_the_entropy_equals_the_published_one_up_to_rounding():
    """The published code multiplies the log-probability after tanh by a scale that was divided by it."""
    policy = make_policy()
    latent, noise = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    sample = policy(latent, noise)
    log_prob = -sample.entropy / 2
    log_prob_after_tanh = log_prob - (1 - sample.action.square()).clamp(min=0).add(1e-6).log().sum(-1)
    torch.testing.assert_close(
        sample.entropy, -log_prob_after_tanh * (log_prob * 2 / (log_prob_after_tanh + 1e-8)), rtol=1e-5, atol=0
    )


def test_rejects_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"below log_std_max, got 1\.0 and -1\.0"):
        TanhGaussianPolicy(8, 2, 16, log_std_min=1.0, log_std_max=-1.0)
