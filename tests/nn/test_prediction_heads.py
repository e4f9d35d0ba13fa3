"""Prediction heads parametrize a distribution, and their loss is its negative log-likelihood."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from vwm.nn.prediction_heads import PredictionHead


def make_head(distribution: str, **changes) -> PredictionHead:
    torch.manual_seed(0)
    return PredictionHead(6, width=8, distribution=distribution, **changes).double()


FEATURES = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_normal_and_bernoulli_losses_equal_torchs_negative_log_likelihoods():
    head, target = (
        make_head("normal", norm="none", activation="elu", layers=2),
        torch.linspace(-3, 3, 12).double().view(3, 4),
    )
    outputs = head(FEATURES)
    constant = 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(head.loss(outputs, target), -Normal(head.mean(outputs), 1).log_prob(target) - constant)
    head, soft_target = make_head("bernoulli"), torch.full((3, 4), 0.3, dtype=torch.float64)
    outputs = head(FEATURES)
    bernoulli = Bernoulli(logits=outputs.squeeze(-1))
    torch.testing.assert_close(head.mean(outputs), bernoulli.probs)
    expected = -0.3 * bernoulli.probs.log() - 0.7 * (1 - bernoulli.probs).log()
    torch.testing.assert_close(head.loss(outputs, soft_target), expected)


def test_a_two_hot_head_starts_at_0_and_learns_any_number():
    head = make_head("two_hot", num_bins=41).float()
    features = FEATURES.float()
    assert not head.mean(head(features)).any()
    target = torch.tensor([-300.0, 0.0, 2.5, 40.0]).expand(3, 4)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    features = torch.eye(6)[:4].expand(3, 4, 6)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(features), target).mean().backward()
        optimizer.step()
    torch.testing.assert_close(head.mean(head(features)), target, rtol=0.1, atol=0.3)


def test_rejects_an_unknown_distribution():
    with pytest.raises(ValueError, match="distribution='poisson' must be"):
        make_head("poisson")
