"""How posterior and prior meet: each paper's way, against the same written out."""

import pytest
import torch
from factories import randomize
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import kl_divergence

from vwm.models.rssm.kl_loss import KLLoss, latent_overshooting_loss
from vwm.models.rssm.rssm import RSSM, RSSMState
from vwm.models.rssm.stochastic_latents import CategoricalLatent, GaussianLatent

KIND = CategoricalLatent(4, 3, 0.01)


def pair(near: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw posteriors and priors [2, 5, raw], from equal to far apart."""
    g = torch.Generator().manual_seed(0)
    prior = torch.randn(2, 5, KIND.num_outputs, dtype=torch.float64, generator=g)
    apart = (
        near * torch.arange(10).view(2, 5, 1) * torch.randn(2, 5, KIND.num_outputs, dtype=torch.float64, generator=g)
    )
    return (prior + apart).requires_grad_(), prior.requires_grad_()


def nats(posterior: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    p, q = (TorchCategorical(logits=KIND.distribution_parameters(x)) for x in (posterior, prior))
    return kl_divergence(p, q).sum(-1)


def agree(divergence: KLLoss, expected, raw) -> None:
    found = divergence(KIND, *map(KIND.distribution_parameters, raw))
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.kl_nats, nats(*raw).mean().detach())
    for one, other in zip(torch.autograd.grad(found.loss, raw), torch.autograd.grad(expected, raw), strict=True):
        torch.testing.assert_close(one, other)


def test_dreamer_v3_clips_each_side_and_time_step_separately():
    raw = pair()
    both = [nats(raw[0].detach(), raw[1]), nats(raw[0], raw[1].detach())]
    assert 0 < (both[0] < 1).sum() < 10  # both cases are there
    dynamics, representation = (torch.maximum(side, torch.tensor(1.0)).mean() for side in both)
    agree(KLLoss(), dynamics + 0.1 * representation, raw)


def test_dreamer_v2_balances_and_its_value_is_the_divergence():
    raw = pair()
    balanced = KLLoss(dynamics_scale=0.8, representation_scale=0.2, free_nats=0.0, free_nats_over="mean", scale=0.1)
    expected = 0.8 * nats(raw[0].detach(), raw[1]).mean() + 0.2 * nats(raw[0], raw[1].detach()).mean()
    agree(balanced, 0.1 * expected, raw)
    torch.testing.assert_close(expected.detach(), nats(*raw).mean().detach())


def test_planet_spares_each_moment_and_dreamer_v1_the_mean():
    raw = pair()
    free = float(nats(*raw).detach().mean()) * 0.9
    agree(KLLoss("elbo", free_nats=free), nats(*raw).clamp(min=free).mean(), raw)
    agree(KLLoss("elbo", free_nats=free, free_nats_over="mean"), nats(*raw).mean(), raw)
    spared = KLLoss("elbo", free_nats=free / 0.8, free_nats_over="mean")(
        KIND, *map(KIND.distribution_parameters, raw)
    ).loss
    assert float(spared.detach()) == pytest.approx(free / 0.8)
    assert not any(g.any() for g in torch.autograd.grad(spared, raw))


def test_overshooting_is_what_a_loop_over_starts_and_distances_finds():
    torch.manual_seed(0)
    settings = {"num_actions": 2, "embedding_size": 3, "deter": 6, "hidden": 5, "stoch": 2, "classes": 0, "cell": "gru"}
    rssm = randomize(RSSM(**settings, norm="none", activation="elu")).double()
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[:, 0] = is_first[1, 3] = True
    embed, action = torch.randn(2, 6, 3, dtype=torch.float64), torch.randint(0, 2, (2, 6))
    states, _ = rssm.observe(embed, action, is_first)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    kind, by_distance = GaussianLatent(2), {2: [], 3: []}
    for i in range(2):
        for start in range(6):
            world = RSSMState(*(part[i : i + 1, start] for part in states))
            for d in range(1, 4):
                t = start + d
                if t >= 6 or is_first[i, t]:
                    break
                world = rssm.imagine_step(world, action[i : i + 1, t - 1], zero)
                if d > 1:
                    by_distance[d].append(
                        kind.kl_divergence(states.parameters[i : i + 1, t].detach(), world.parameters)
                    )
    expected = sum(torch.cat(found).clamp(min=0.01).mean() for found in by_distance.values()) / 2
    Silent = type(
        "Silent", (GaussianLatent,), {"sample_noise": lambda self, parameters: torch.zeros_like(parameters[..., 0])}
    )
    rssm.stochastic = Silent(2)
    found = latent_overshooting_loss(rssm, states, is_first, 3, KLLoss("elbo", free_nats=0.01, scale=0.5))
    torch.testing.assert_close(found, 0.5 * expected)
    weights = list(rssm.parameters())
    grads = [torch.autograd.grad(x, weights, allow_unused=True, retain_graph=True) for x in (found, 0.5 * expected)]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="max_distance=6"):
        latent_overshooting_loss(rssm, states, is_first, 6, KLLoss())


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="objective='vae'"):
        KLLoss("vae")
    with pytest.raises(ValueError, match="free_nats_over='all'"):
        KLLoss(free_nats_over="all")
