"""Encoding numbers as bins and decoding them is exact over the whole range."""

import pytest
import torch

from vwm.nn.value_support import ScaledSupport, inverse_value_transform, value_transform


def test_the_value_transform_equals_the_published_formula_and_is_inverted():
    x = torch.tensor([-48000.0, -3, -0.001, 0, 0.5, 8, 48000], dtype=torch.float64)
    expected = torch.sign(x) * (torch.sqrt(torch.abs(x) + 1) - 1) + 0.001 * x
    torch.testing.assert_close(value_transform(x), expected, rtol=0, atol=0)
    assert value_transform(torch.tensor(8.0)) == pytest.approx(2.008)
    torch.testing.assert_close(inverse_value_transform(value_transform(x)), x, rtol=1e-12, atol=1e-12)
    assert inverse_value_transform(torch.zeros(3)).tolist() == [0, 0, 0]


def test_two_hot_encoding_round_trips():
    support = ScaledSupport(20)
    x = torch.tensor([[-300.0, -1, 0], [0.3, 8, 250]])
    weights = support.encode(x)
    assert weights.shape == (2, 3, 41) and ((weights > 0).sum(-1) <= 2).all() and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    assert weights[1, 1, 22] == pytest.approx(1 - 0.008, abs=1e-5)  # value_transform(8) = 2.008
    torch.testing.assert_close(support.mean(weights.log()), x, rtol=1e-4, atol=1e-4)
    out_of_range = support.encode(torch.tensor([1e9, -1e9]))
    assert out_of_range[0, -1] == 1 and out_of_range[1, 0] == 1
    assert support.encode(torch.tensor(float("nan"))).isnan().any()
    assert support.mean(torch.zeros(41)).item() == pytest.approx(0, abs=1e-5)


def test_the_loss_is_lowest_at_the_target():
    support = ScaledSupport(5)
    logits = torch.zeros(11, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        support.loss(logits, torch.tensor(2.5)).backward()
        optimizer.step()
    assert support.mean(logits).item() == pytest.approx(2.5, abs=0.05)
    with pytest.raises(ValueError, match="limit must be 1 or more, got 0"):
        ScaledSupport(0)
