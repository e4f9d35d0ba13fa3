"""KL losses of posterior and prior equal the formulas of each paper, and so do their gradients."""

import pytest
import torch
from factories import randomize
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import kl_divergence

from vwm.models.rssm.kl_loss import KLLoss, latent_overshooting_loss
from vwm.models.rssm.rssm import RSSM, RSSMState
from vwm.models.rssm.stochastic_latents import CategoricalLatent, GaussianLatent

LATENT = CategoricalLatent(4, 3, 0.01)


def make_outputs(scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Network outputs of posteriors and priors, [2, 5, outputs], from equal to very different."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn(2, 5, LATENT.num_outputs, dtype=torch.float64, generator=generator)
    offset = (
        scale
        * torch.arange(10).view(2, 5, 1)
        * torch.randn(2, 5, LATENT.num_outputs, dtype=torch.float64, generator=generator)
    )
    return (prior + offset).requires_grad_(), prior.requires_grad_()


def kl_nats(posterior: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    p, q = (TorchCategorical(logits=LATENT.distribution_parameters(x)) for x in (posterior, prior))
    return kl_divergence(p, q).sum(-1)


def assert_loss_and_gradients(kl_loss: KLLoss, expected, raw) -> None:
    output = kl_loss(LATENT, *map(LATENT.distribution_parameters, raw))
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.kl_nats, kl_nats(*raw).mean().detach())
    for grad, expected_grad in zip(
        torch.autograd.grad(output.loss, raw), torch.autograd.grad(expected, raw), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad)


def test_dreamer_v3_clips_each_side_and_time_step_separately():
    raw = make_outputs()
    sides = [kl_nats(raw[0].detach(), raw[1]), kl_nats(raw[0], raw[1].detach())]
    assert 0 < (sides[0] < 1).sum() < 10  # both cases occur
    dynamics, representation = (torch.maximum(side, torch.tensor(1.0)).mean() for side in sides)
    assert_loss_and_gradients(KLLoss(), dynamics + 0.1 * representation, raw)


def test_dreamer_v2_weights_both_gradients_and_equals_the_divergence():
    raw = make_outputs()
    balanced = KLLoss(dynamics_scale=0.8, representation_scale=0.2, free_nats=0.0, free_nats_over="mean", scale=0.1)
    expected = 0.8 * kl_nats(raw[0].detach(), raw[1]).mean() + 0.2 * kl_nats(raw[0], raw[1].detach()).mean()
    assert_loss_and_gradients(balanced, 0.1 * expected, raw)
    torch.testing.assert_close(expected.detach(), kl_nats(*raw).mean().detach())


def test_free_nats_apply_to_each_time_step_in_planet_and_to_the_mean_in_dreamer_v1():
    raw = make_outputs()
    free_nats = float(kl_nats(*raw).detach().mean()) * 0.9
    assert_loss_and_gradients(KLLoss("elbo", free_nats=free_nats), kl_nats(*raw).clamp(min=free_nats).mean(), raw)
    assert_loss_and_gradients(KLLoss("elbo", free_nats=free_nats, free_nats_over="mean"), kl_nats(*raw).mean(), raw)
    clipped = KLLoss("elbo", free_nats=free_nats / 0.8, free_nats_over="mean")(
        LATENT, *map(LATENT.distribution_parameters, raw)
    ).loss
    assert float(clipped.detach()) == pytest.approx(free_nats / 0.8)
    assert not any(grad.any() for grad in torch.autograd.grad(clipped, raw))


def test_the_overshooting_loss_equals_a_loop_over_starts_and_distances():
    torch.manual_seed(0)
    settings = {"num_actions": 2, "embedding_size": 3, "deter": 6, "hidden": 5, "stoch": 2, "classes": 0, "cell": "gru"}
    rssm = randomize(RSSM(**settings, norm="none", activation="elu")).double()
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[:, 0] = is_first[1, 3] = True
    embed, action = torch.randn(2, 6, 3, dtype=torch.float64), torch.randint(0, 2, (2, 6))
    states, _ = rssm.observe(embed, action, is_first)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    latent, by_distance = GaussianLatent(2), {2: [], 3: []}
    for i in range(2):
        for start in range(6):
            state = RSSMState(*(tensor[i : i + 1, start] for tensor in states))
            for d in range(1, 4):
                t = start + d
                if t >= 6 or is_first[i, t]:
                    break
                state = rssm.imagine_step(state, action[i : i + 1, t - 1], zero)
                if d > 1:
                    by_distance[d].append(
                        latent.kl_divergence(states.parameters[i : i + 1, t].detach(), state.parameters)
                    )
    expected = sum(torch.cat(terms).clamp(min=0.01).mean() for terms in by_distance.values()) / 2
    NoiselessLatent = type(
        "NoiselessLatent",
        (GaussianLatent,),
        {"sample_noise": lambda self, parameters: torch.zeros_like(parameters[..., 0])},
    )
    rssm.stochastic = NoiselessLatent(2)
    loss = latent_overshooting_loss(rssm, states, is_first, 3, KLLoss("elbo", free_nats=0.01, scale=0.5))
    torch.testing.assert_close(loss, 0.5 * expected)
    weights = list(rssm.parameters())
    grads = [torch.autograd.grad(x, weights, allow_unused=True, retain_graph=True) for x in (loss, 0.5 * expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        assert (grad is None) == (expected_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected_grad)
    with pytest.raises(ValueError, match="max_distance=6"):
        latent_overshooting_loss(rssm, states, is_first, 6, KLLoss())


def test_rejects_unknown_options():
    with pytest.raises(ValueError, match="objective='vae'"):
        KLLoss("vae")
    with pytest.raises(ValueError, match="free_nats_over='all'"):
        KLLoss(free_nats_over="all")
