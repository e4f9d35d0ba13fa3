"""Stochastic latents, compared with torch.distributions."""

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from vwm.models.rssm.stochastic_latents import CategoricalLatent, GaussianLatent

LATENTS = {
    "gaussian": GaussianLatent(3, 0.1),
    "categorical": CategoricalLatent(3, 5),
    "mixed": CategoricalLatent(3, 5, 0.01),
}


def make_outputs(latent, *shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(
        *shape, latent.num_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def torch_distribution(latent, parameters: torch.Tensor):
    return Normal(*parameters.unbind(-1)) if isinstance(latent, GaussianLatent) else TorchCategorical(logits=parameters)


@pytest.mark.parametrize("name", list(LATENTS))
def test_the_kl_divergence_equals_torchs_and_is_zero_for_equal_distributions(name):
    latent = LATENTS[name]
    p, q = (latent.distribution_parameters(make_outputs(latent, 4, 2, seed=i)) for i in (0, 1))
    expected = kl_divergence(torch_distribution(latent, p), torch_distribution(latent, q)).sum(-1)
    torch.testing.assert_close(latent.kl_divergence(p, q), expected, rtol=1e-9, atol=1e-9)
    assert latent.kl_divergence(p, p).abs().max() < 1e-12 and latent.kl_divergence(p, q).shape == (4, 2)


def test_parameters_equal_the_papers_formulas():
    x = make_outputs(LATENTS["gaussian"], 7)
    mean, std = LATENTS["gaussian"].distribution_parameters(x).unbind(-1)
    assert torch.equal(mean, x[:, :3]) and std.min() > 0.1
    torch.testing.assert_close(std, torch.log1p(x[:, 3:].exp()) + 0.1)
    outputs = 100 * make_outputs(LATENTS["mixed"], 7)
    probabilities = LATENTS["mixed"].distribution_parameters(outputs).exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(7, 3, dtype=torch.float64))
    torch.testing.assert_close(probabilities, 0.99 * outputs.view(7, 3, 5).softmax(-1) + 0.01 / 5)


@pytest.mark.parametrize("name", list(LATENTS))
def test_samples_follow_the_distribution_with_random_and_with_seeded_noise(name):
    latent, count = LATENTS[name], 40_000
    parameters = latent.distribution_parameters(make_outputs(latent, 1)).expand(count, -1, -1)
    torch.manual_seed(0)
    for noise in (latent.sample_noise(parameters), latent.seeded_noise(torch.arange(count))):
        assert noise.shape == (count, 3)
        samples = latent.sample(parameters, noise)
        assert samples.shape == (count, latent.sample_size)
        if isinstance(latent, GaussianLatent):
            mean, std = parameters[0].unbind(-1)
            torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.05)
            torch.testing.assert_close(samples.std(0), std, rtol=0.02, atol=0)
        else:
            one_hots = samples.view(count, 3, 5)
            assert torch.equal(one_hots.sum(-1), torch.ones(count, 3, dtype=torch.float64))
            torch.testing.assert_close(one_hots.mean(0), parameters[0].exp(), rtol=0, atol=0.015)


def test_noise_of_0_and_almost_1_gives_the_first_and_last_class():
    latent = LATENTS["categorical"]
    parameters = latent.distribution_parameters(make_outputs(latent, 1).float())
    first = latent.sample(parameters, torch.zeros(1, 3)).view(3, 5)
    last = latent.sample(parameters, torch.full((1, 3), 1 - 2**-24)).view(3, 5)
    assert torch.equal(first.argmax(-1), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(last.argmax(-1), torch.full((3,), 4)) and last.max() == 1 == first.max()


def test_gradients_are_straight_through_for_categorical_and_reparameterized_for_gaussian_latents():
    latent, output_grad = (
        LATENTS["mixed"],
        torch.randn(2, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    x = make_outputs(latent, 2).requires_grad_()
    parameters = latent.distribution_parameters(x)
    (grad,) = torch.autograd.grad((latent.sample(parameters, torch.rand(2, 3)) * output_grad).sum(), x)
    probabilities = 0.99 * x.view(2, 3, 5).softmax(-1) + 0.01 / 5
    (expected_grad,) = torch.autograd.grad((probabilities.flatten(-2) * output_grad).sum(), x)
    torch.testing.assert_close(grad, expected_grad)
    latent, x = LATENTS["gaussian"], make_outputs(LATENTS["gaussian"], 2).requires_grad_()
    noise = torch.randn(2, 3, dtype=torch.float64)
    (gaussian_grad,) = torch.autograd.grad(latent.sample(latent.distribution_parameters(x), noise).sum(), x)
    torch.testing.assert_close(gaussian_grad, torch.cat((torch.ones_like(noise), noise * x[:, 3:].sigmoid()), dim=-1))
