import math

import pytest
import torch

from vwm.models.tdmpc2.tanh_gaussian_policy import TanhGaussianPolicy


def policy() -> TanhGaussianPolicy:
    torch.manual_seed(0)
    made = TanhGaussianPolicy(8, 2, 16, log_std_min=-5.0, log_std_max=1.0).double()
    with torch.no_grad():
        made.layers.output.weight.mul_(100)
    return made


def test_actions_are_a_squeezed_gaussian_and_its_entropy_is_estimated_before_that():
    made = policy()
    latent, noise = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    chosen = made(latent, noise)
    said = made.layers(latent)
    std = (-5 + 3 * (said[:, 2:].tanh() + 1)).exp()
    assert (std > math.exp(-5)).all() and (std < math.exp(1)).all() and std.std() > 0
    raw = said[:, :2] + std * noise
    torch.testing.assert_close(chosen.action, raw.tanh())
    torch.testing.assert_close(chosen.mean, said[:, :2].tanh())
    density = torch.distributions.Normal(said[:, :2], std).log_prob(raw).sum(-1)
    torch.testing.assert_close(chosen.entropy, -2 * density)
    with torch.no_grad():
        assert torch.equal(made.sample_action(latent, noise), chosen.action)


def test_the_published_entropy_is_the_same_up_to_rounding():
    """Theirs: the log-probability after tanh, times what scales it, which was divided by the former."""
    made = policy()
    latent, noise = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    chosen = made(latent, noise)
    before = -chosen.entropy / 2
    after = before - (1 - chosen.action.square()).clamp(min=0).add(1e-6).log().sum(-1)
    torch.testing.assert_close(chosen.entropy, -after * (before * 2 / (after + 1e-8)), rtol=1e-5, atol=0)


def test_rejects_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"below log_std_max, got 1\.0 and -1\.0"):
        TanhGaussianPolicy(8, 2, 16, log_std_min=1.0, log_std_max=-1.0)
