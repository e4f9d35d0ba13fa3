"""Regularizers against collapse equal direct computations of their formulas."""

import math

import pytest
import torch

from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer


def test_losses_equal_the_variance_and_covariance_of_the_samples():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    loss, logs = VarianceCovarianceRegularizer(2.0, 3.0)(x)
    covariance = torch.cov(x.T)
    hinge = (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
    covariance_loss = (covariance - torch.diag(covariance.diagonal())).square().sum() / 6
    assert logs["variance_loss"].item() == pytest.approx(hinge.item(), rel=1e-5)
    assert loss.item() == pytest.approx((2 * hinge + 3 * covariance_loss).item(), rel=1e-5)


def test_all_leading_axes_count_as_samples():
    x = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        VarianceCovarianceRegularizer()(x)[0], VarianceCovarianceRegularizer()(x.flatten(0, 1))[0]
    )


def test_collapsed_embeddings_have_a_higher_loss_and_the_gradient_spreads_them():
    points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for term in (VarianceCovarianceRegularizer(), SIGReg(1.0)):
        torch.manual_seed(0)
        spread_loss, collapsed_loss = term(points)[0], term(points * 0.01)[0]
        assert collapsed_loss > 5 * spread_loss
        x = (points * 0.01).requires_grad_()
        term(x)[0].backward()
        assert (x.grad * x).sum() < 0  # a step against the gradient makes them larger


def test_sigreg_of_a_single_point_equals_the_integral():
    """All samples at 0: the characteristic function is 1, so N integral (1 - exp(-t^2/2))^2 exp(-t^2/2)."""
    t = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    normal = torch.exp(-t.square() / 2)
    exact = 40 * torch.trapezoid((1 - normal).square() * normal, t)
    _, logs = SIGReg(1.0, num_slices=3, num_points=1001)(torch.zeros(40, 5))
    assert logs["sigreg"].item() == pytest.approx(exact.item(), rel=1e-4)


def test_sigreg_of_normal_samples_does_not_grow_with_their_number():
    torch.manual_seed(1)
    term = SIGReg(1.0, num_slices=64)
    few, many = (
        sum(term(torch.randn(count, 8))[1]["sigreg"].item() for _ in range(draws)) / draws
        for count, draws in ((100, 200), (1_000, 200))
    )
    assert many == pytest.approx(few, rel=0.1)
    uniform = (torch.rand(20_000, 8) - 0.5) * math.sqrt(12)  # of equal variance, and another distribution
    assert term(uniform)[1]["sigreg"] > 3 * many


def test_rejects_a_single_sample():
    with pytest.raises(ValueError, match="batch_size"):
        VarianceCovarianceRegularizer()(torch.zeros(1, 4))
