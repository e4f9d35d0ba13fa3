"""The Gaussian bottleneck: its divergence, its samples, and the range of its actions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vwm.nn.gaussian_bottleneck import GaussianBottleneck


def bottleneck(dims: int = 3, kl_weight: float = 0.5) -> GaussianBottleneck:
    torch.manual_seed(0)
    return GaussianBottleneck(8, dims, kl_weight).double()


def test_the_loss_is_the_weighted_divergence_from_the_prior():
    layer, x = bottleneck(), torch.randn(4, 5, 8).double()
    mean, log_variance = layer.moments(x).chunk(2, dim=-1)
    own, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(layer(x).loss, 0.5 * kl_divergence(own, prior).sum(-1).mean())
    torch.nn.init.zeros_(layer.moments.weight)
    torch.nn.init.zeros_(layer.moments.bias)
    assert layer(x).loss == 0


def test_training_samples_with_a_gradient_and_evaluation_takes_the_mean():
    layer, x = bottleneck(), torch.randn(4, 5, 8).double().requires_grad_()
    first, second = layer.train()(x), layer(x)
    assert not torch.equal(first.codes, second.codes) and torch.equal(first.loss, second.loss)
    assert not first.actions.requires_grad
    first.codes.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and layer.moments.weight.grad.abs().min() > 0
    codes = layer.eval()(x).codes
    assert torch.equal(codes, layer(x).codes)
    torch.testing.assert_close(codes, layer.embed(layer.moments(x)[..., :3]))


def test_actions_are_scaled_by_the_percentiles_of_the_last_means():
    layer, x = bottleneck(), torch.randn(1500, 8).double()
    layer.train()(x[:700])
    layer(x[700:])  # 1,024 of both batches count
    mean = layer.moments(x[-1024:])[..., :3]
    low, middle, high = mean.quantile(torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64), dim=0)
    torch.testing.assert_close(layer.percentiles, torch.stack((low, middle, high)))
    expected = ((mean - (low + high) / 2) / ((high - low) / 2)).clamp(-1, 1)
    actions = layer.eval()(x[-1024:]).actions
    torch.testing.assert_close(actions, expected)
    assert actions.min() == -1 and actions.max() == 1 and 0.01 < (actions.abs() == 1).double().mean() < 0.03
    torch.testing.assert_close(torch.tensor(layer.rest), actions.median(dim=0).values.float(), rtol=0, atol=0.01)
    again = bottleneck()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.eval()(x).actions, layer(x).actions) and again.rest == layer.rest


def test_noise_of_an_unused_dimension_is_not_amplified():
    layer = bottleneck()
    torch.nn.init.normal_(layer.moments.weight, std=1e-6)
    torch.nn.init.zeros_(layer.moments.bias)
    assert layer.train()(torch.randn(2000, 8).double()).actions.abs().max() < 1e-3


@pytest.mark.parametrize("values", [(0, 0.5), (5000, 0.5), (3, 0.0)])
def test_rejects_values_out_of_range(values):
    with pytest.raises(ValueError, match=r"action_dims must lie in 1\.\.4096"):
        GaussianBottleneck(8, *values)
