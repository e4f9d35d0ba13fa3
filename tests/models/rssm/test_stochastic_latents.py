"""Stochastic variables against torch's distributions."""

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from vwm.models.rssm.stochastic_latents import CategoricalLatent, GaussianLatent

KINDS = {
    "gaussian": GaussianLatent(3, 0.1),
    "categorical": CategoricalLatent(3, 5),
    "mixed": CategoricalLatent(3, 5, 0.01),
}


def raw(kind, *shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, kind.num_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distribution(kind, parameters: torch.Tensor):
    return Normal(*parameters.unbind(-1)) if isinstance(kind, GaussianLatent) else TorchCategorical(logits=parameters)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_divergence_is_torchs_and_nothing_from_itself(name):
    kind = KINDS[name]
    p, q = (kind.distribution_parameters(raw(kind, 4, 2, seed=i)) for i in (0, 1))
    expected = kl_divergence(distribution(kind, p), distribution(kind, q)).sum(-1)
    torch.testing.assert_close(kind.kl_divergence(p, q), expected, rtol=1e-9, atol=1e-9)
    assert kind.kl_divergence(p, p).abs().max() < 1e-12 and kind.kl_divergence(p, q).shape == (4, 2)


def test_parameters_are_what_the_papers_say():
    x = raw(KINDS["gaussian"], 7)
    mean, std = KINDS["gaussian"].distribution_parameters(x).unbind(-1)
    assert torch.equal(mean, x[:, :3]) and std.min() > 0.1
    torch.testing.assert_close(std, torch.log1p(x[:, 3:].exp()) + 0.1)
    wild = 100 * raw(KINDS["mixed"], 7)
    shares = KINDS["mixed"].distribution_parameters(wild).exp()
    torch.testing.assert_close(shares.sum(-1), torch.ones(7, 3, dtype=torch.float64))
    torch.testing.assert_close(shares, 0.99 * wild.view(7, 3, 5).softmax(-1) + 0.01 / 5)


@pytest.mark.parametrize("name", list(KINDS))
def test_samples_are_distributed_as_they_should_by_either_source_of_noise(name):
    kind, count = KINDS[name], 40_000
    parameters = kind.distribution_parameters(raw(kind, 1)).expand(count, -1, -1)
    torch.manual_seed(0)
    for noise in (kind.sample_noise(parameters), kind.seeded_noise(torch.arange(count))):
        assert noise.shape == (count, 3)
        drawn = kind.sample(parameters, noise)
        assert drawn.shape == (count, kind.sample_size)
        if isinstance(kind, GaussianLatent):
            mean, std = parameters[0].unbind(-1)
            torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
            torch.testing.assert_close(drawn.std(0), std, rtol=0.02, atol=0)
        else:
            one_hots = drawn.view(count, 3, 5)
            assert torch.equal(one_hots.sum(-1), torch.ones(count, 3, dtype=torch.float64))
            torch.testing.assert_close(one_hots.mean(0), parameters[0].exp(), rtol=0, atol=0.015)


def test_the_edges_of_the_noise_are_classes_too():
    kind = KINDS["categorical"]
    parameters = kind.distribution_parameters(raw(kind, 1).float())
    first = kind.sample(parameters, torch.zeros(1, 3)).view(3, 5)
    final = kind.sample(parameters, torch.full((1, 3), 1 - 2**-24)).view(3, 5)
    assert torch.equal(first.argmax(-1), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(final.argmax(-1), torch.full((3,), 4)) and final.max() == 1 == first.max()


def test_gradients_go_straight_through_choices_and_along_gaussians():
    kind, toward = KINDS["mixed"], torch.randn(2, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = raw(kind, 2).requires_grad_()
    parameters = kind.distribution_parameters(x)
    (straight,) = torch.autograd.grad((kind.sample(parameters, torch.rand(2, 3)) * toward).sum(), x)
    shares = 0.99 * x.view(2, 3, 5).softmax(-1) + 0.01 / 5
    (through,) = torch.autograd.grad((shares.flatten(-2) * toward).sum(), x)
    torch.testing.assert_close(straight, through)
    kind, x = KINDS["gaussian"], raw(KINDS["gaussian"], 2).requires_grad_()
    noise = torch.randn(2, 3, dtype=torch.float64)
    (along,) = torch.autograd.grad(kind.sample(kind.distribution_parameters(x), noise).sum(), x)
    torch.testing.assert_close(along, torch.cat((torch.ones_like(noise), noise * x[:, 3:].sigmoid()), dim=-1))
