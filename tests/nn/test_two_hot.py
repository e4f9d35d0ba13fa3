"""Two-hot encoding: the mean inverts encoding, and losses are cross-entropies."""

import math

import pytest
import torch

from vwm.nn.two_hot import SymexpTwoHot, SymlogTwoHot, symexp, symlog
from vwm.nn.value_support import ScaledSupport

NUMBERS = torch.tensor([0.0, 1e-3, 0.04, -0.3, 1.0, -1.0, 7.5, -123.0, 4567.0, 1e6, -3e8])


def test_symexp_inverts_symlog():
    torch.testing.assert_close(symexp(symlog(NUMBERS)), NUMBERS, rtol=1e-5, atol=0)
    assert torch.equal(symlog(-NUMBERS), -symlog(NUMBERS))
    torch.testing.assert_close(symlog(torch.tensor([torch.e - 1])), torch.ones(1))


@pytest.mark.parametrize("shape", [(11,), (11, 1), (1, 11)])
def test_weights_sum_to_1_on_adjacent_bins_and_their_mean_is_the_number(shape):
    two_hot, x = SymexpTwoHot(), NUMBERS.view(shape)
    weights = two_hot.encode(x)
    assert weights.shape == (*shape, 255) and (weights >= 0).all() and two_hot.values.shape == (255,)
    torch.testing.assert_close(weights.sum(-1), torch.ones(shape))
    torch.testing.assert_close((weights * two_hot.values).sum(-1), x, rtol=1e-5, atol=1e-6)
    for row in weights.flatten(0, -2):
        bins = row.nonzero().flatten()
        assert len(bins) == 1 or (len(bins) == 2 and bins[1] == bins[0] + 1)


def test_a_number_on_a_bin_is_encoded_by_that_bin_only():
    two_hot = SymexpTwoHot(bins=41, symlog_limit=8.0)
    assert torch.equal(two_hot.encode(two_hot.values), torch.eye(41))
    assert two_hot.values[20] == 0 and torch.equal(two_hot.values, -two_hot.values.flip(0))
    steps = symlog(two_hot.values).diff()
    torch.testing.assert_close(steps, torch.full((40,), 0.4), rtol=0, atol=1e-4)


def test_numbers_out_of_range_are_encoded_by_the_outermost_bin():
    two_hot = SymexpTwoHot(bins=5, symlog_limit=2.0)
    edge = symexp(torch.tensor(2.0))
    weights = two_hot.encode(torch.stack((edge * 2, -edge * 2, torch.tensor(torch.inf), torch.tensor(-torch.inf))))
    assert torch.equal(weights, torch.eye(5)[[4, 0, 4, 0]])


def test_uniform_and_other_symmetric_logits_have_a_mean_of_exactly_0():
    two_hot, half = SymexpTwoHot(), torch.randn(6, 127, generator=torch.Generator().manual_seed(0))
    assert (two_hot.mean(torch.zeros(3, 255)) == 0).all() and (two_hot.mean(torch.full((255,), 7.3)) == 0).all()
    assert (two_hot.mean(torch.cat((half, torch.ones(6, 1), half.flip(-1)), dim=-1)) == 0).all()


def test_the_mean_inverts_encoding():
    two_hot = SymexpTwoHot()
    torch.testing.assert_close(two_hot.mean(two_hot.encode(NUMBERS).log()), NUMBERS, rtol=1e-5, atol=1e-6)
    logits = torch.randn(4, 255, generator=torch.Generator().manual_seed(0)) * 3
    expected = (logits.double().softmax(-1) * two_hot.values.double()).sum(-1)
    torch.testing.assert_close(two_hot.mean(logits).double(), expected, rtol=1e-4, atol=0)


def test_the_loss_is_the_cross_entropy_and_lowest_at_the_encoded_number():
    two_hot, generator = SymexpTwoHot(bins=41), torch.Generator().manual_seed(0)
    logits = torch.randn(11, 41, generator=generator).requires_grad_()
    weights, loss = two_hot.encode(NUMBERS), two_hot.loss(logits, NUMBERS)
    expected = torch.nn.functional.cross_entropy(logits, weights, reduction="none")
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, logits.softmax(-1) - weights, rtol=0, atol=1e-6)
    best = two_hot.loss(weights.clamp(min=1e-12).log(), NUMBERS)
    assert (best < loss).all() and (best < 0.7).all()


def test_rejects_bin_counts_without_a_bin_at_0():
    for bins in (1, 2, 254):
        with pytest.raises(ValueError, match=f"bins={bins} must be odd"):
            SymexpTwoHot(bins)


def reference_weights(x: float, bins: int, limit: float) -> list[float]:
    """Two-hot weights of a number, one bin at a time."""
    position = min(max(math.copysign(math.log(1 + abs(x)), x), -limit), limit)
    step = 2 * limit / (bins - 1)
    return [max(0.0, 1 - abs(-limit + i * step - position) / step) for i in range(bins)]


def test_symlog_bins_encode_and_average_in_symlog_space():
    two_hot = SymlogTwoHot(101, 10.0).double()
    x = torch.tensor([0.0, 0.1, -0.1, 1.0, -7.3, 300.0, 22025.0, -3e7, 1e9], dtype=torch.float64)
    logits = torch.randn(3, len(x), 101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([reference_weights(v, 101, 10.0) for v in x.tolist()], dtype=torch.float64)
    expected = -(weights * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1)
    torch.testing.assert_close(
        two_hot.loss(logits, x), expected, rtol=1e-6, atol=1e-6
    )  # the bins are created in float32
    bins = torch.tensor([-10 + 0.2 * i for i in range(101)], dtype=torch.float64)
    mean = (logits.exp() / logits.exp().sum(-1, keepdim=True) * bins).sum(-1)
    torch.testing.assert_close(two_hot.mean(logits), mean.sign() * (mean.abs().exp() - 1), rtol=1e-5, atol=1e-5)


def test_the_symlog_mean_inverts_encoding():
    two_hot = SymlogTwoHot(101, 10.0)
    x = torch.tensor([0.0, -0.3, 5.0, 22025.0])
    weights = torch.tensor([reference_weights(v, 101, 10.0) for v in x.tolist()])
    torch.testing.assert_close(two_hot.mean(weights.log()), x, rtol=1e-4, atol=1e-5)


def test_a_wide_distribution_has_a_lower_mean_in_symlog_space():
    logits = torch.zeros(101).index_fill(0, torch.tensor([50, 90]), 50.0)  # 0 or e^8 - 1, equally likely
    assert float(SymlogTwoHot(101, 10.0).mean(logits)) == pytest.approx(math.exp(4) - 1, rel=1e-3)
    assert float(SymexpTwoHot(101, 10.0).mean(logits)) == pytest.approx((math.exp(8) - 1) / 2, rel=1e-3)


@pytest.mark.parametrize("settings", [{"bins": 1}, {"symlog_limit": 0.0}])
def test_rejects_invalid_symlog_bins(settings):
    with pytest.raises(ValueError, match="bins must be 2 or more and symlog_limit above 0"):
        SymlogTwoHot(**settings)


def test_the_loss_of_a_non_finite_number_is_nan():
    two_hot = SymlogTwoHot()
    loss = two_hot.loss(torch.zeros(3, 101), torch.tensor([float("nan"), float("inf"), 1.0]))
    assert loss.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("make", [SymexpTwoHot, SymlogTwoHot, lambda: ScaledSupport(300)])
def test_bins_are_not_rounded_with_the_network_that_they_are_a_part_of(make) -> None:
    bins, network = make(), torch.nn.Sequential(make(), torch.nn.Linear(2, 2))
    logits = torch.randn(4, len(bins.values), generator=torch.Generator().manual_seed(0)).bfloat16()
    network = network.to(torch.bfloat16)
    assert network[1].weight.dtype == torch.bfloat16 and torch.equal(network[0].values, bins.values)
    assert torch.equal(network[0].mean(logits), bins.mean(logits))
    assert network.double()[0].values.dtype == torch.float64
