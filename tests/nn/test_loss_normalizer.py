"""Losses on one scale."""

import pytest
import torch

from vwm.nn.loss_normalizer import LossNormalizer

LOSSES = torch.rand(20, generator=torch.Generator().manual_seed(0)) * 5 + 0.1


@pytest.mark.parametrize("size", [1e-5, 1.0, 3e5])
def test_the_first_loss_becomes_1(size):
    torch.testing.assert_close(LossNormalizer()(torch.tensor(size)), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_later_ones_are_divided_by_the_root_of_the_weighted_mean_square():
    rms, decay = LossNormalizer(decay=0.9), 0.9
    for i, loss in enumerate(LOSSES):
        weights = decay ** torch.arange(i, -1, -1.0)
        expected = loss / ((weights * LOSSES[: i + 1].square()).sum() / weights.sum()).sqrt()
        torch.testing.assert_close(rms(loss), expected, rtol=1e-4, atol=0)


def test_losses_of_any_size_come_out_equal():
    small, large = LossNormalizer(), LossNormalizer()
    for loss in LOSSES:
        torch.testing.assert_close(small(loss * 1e-3), large(loss * 1e3), rtol=1e-4, atol=0)


def test_the_gradient_is_that_of_the_loss_times_a_constant():
    rms = LossNormalizer()
    for loss in LOSSES:
        weight = torch.tensor(2.0, requires_grad=True)
        out = rms(weight.square() * loss)
        out.backward()
        # out = k w² with a constant k; a scale in the gradient would take from it.
        torch.testing.assert_close(weight.grad, 2 * out.detach() / 2.0, rtol=1e-5, atol=0)
        assert not any(b.requires_grad for b in rms.buffers())


def test_evaluation_divides_by_what_training_found_and_changes_nothing():
    rms = LossNormalizer()
    for loss in LOSSES:
        rms(loss)
    before = {name: b.clone() for name, b in rms.state_dict().items()}
    rms.eval()
    one, two = rms(torch.tensor(1.0)), rms(torch.tensor(1000.0))
    assert all(torch.equal(b, before[name]) for name, b in rms.state_dict().items())
    torch.testing.assert_close(two, one * 1000)
    torch.testing.assert_close(one, (before["weight"] / before["mean_square"]).sqrt())


def test_a_loaded_state_continues_equally():
    unbroken, again = LossNormalizer(), LossNormalizer()
    for loss in LOSSES[:7]:
        unbroken(loss)
    again.load_state_dict(unbroken.state_dict())
    assert len(unbroken.state_dict()) == 2
    for loss in LOSSES[7:]:
        assert torch.equal(unbroken(loss), again(loss))
