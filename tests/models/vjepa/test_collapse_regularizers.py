"""Regularizers against collapse: exact on what can be computed by hand."""

import math

import pytest
import torch

from vwm.models.vjepa.collapse_regularizers import SIGReg, VarianceCovarianceRegularizer


def test_variance_and_covariance_are_those_of_the_samples():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    loss, logs = VarianceCovarianceRegularizer(2.0, 3.0)(x)
    matrix = torch.cov(x.T)
    hinge = (1 - (matrix.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
    spread = (matrix - torch.diag(matrix.diagonal())).square().sum() / 6
    assert logs["variance_loss"].item() == pytest.approx(hinge.item(), rel=1e-5)
    assert loss.item() == pytest.approx((2 * hinge + 3 * spread).item(), rel=1e-5)


def test_leading_axes_are_all_samples():
    x = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        VarianceCovarianceRegularizer()(x)[0], VarianceCovarianceRegularizer()(x.flatten(0, 1))[0]
    )


def test_collapsed_embeddings_cost_most_and_the_gradient_spreads_them():
    points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for term in (VarianceCovarianceRegularizer(), SIGReg(1.0)):
        torch.manual_seed(0)
        apart, together = term(points)[0], term(points * 0.01)[0]
        assert together > 5 * apart
        x = (points * 0.01).requires_grad_()
        term(x)[0].backward()
        assert (x.grad * x).sum() < 0  # a step against the gradient makes them larger


def test_sigreg_of_a_single_point_is_the_integral_by_hand():
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
    uniform = (torch.rand(20_000, 8) - 0.5) * math.sqrt(12)  # as wide, and of another shape
    assert term(uniform)[1]["sigreg"] > 3 * many


def test_one_sample_has_no_variance():
    with pytest.raises(ValueError, match="batch_size"):
        VarianceCovarianceRegularizer()(torch.zeros(1, 4))
