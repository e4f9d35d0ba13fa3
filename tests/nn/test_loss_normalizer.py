"""Loss normalization by a running root mean square."""

import pytest
import torch

from vwm.nn.loss_normalizer import LossNormalizer

LOSSES = torch.rand(20, generator=torch.Generator().manual_seed(0)) * 5 + 0.1


@pytest.mark.parametrize("size", [1e-5, 1.0, 3e5])
def test_the_first_loss_becomes_1(size):
    torch.testing.assert_close(LossNormalizer()(torch.tensor(size)), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_later_losses_are_divided_by_the_root_of_the_weighted_mean_square():
    normalizer, decay = LossNormalizer(decay=0.9), 0.9
    for i, loss in enumerate(LOSSES):
        weights = decay ** torch.arange(i, -1, -1.0)
        expected = loss / ((weights * LOSSES[: i + 1].square()).sum() / weights.sum()).sqrt()
        torch.testing.assert_close(normalizer(loss), expected, rtol=1e-4, atol=0)


def test_normalized_losses_do_not_depend_on_the_scale():
    small, large = LossNormalizer(), LossNormalizer()
    for loss in LOSSES:
        torch.testing.assert_close(small(loss * 1e-3), large(loss * 1e3), rtol=1e-4, atol=0)


def test_the_gradient_is_that_of_the_loss_times_a_constant():
    normalizer = LossNormalizer()
    for loss in LOSSES:
        weight = torch.tensor(2.0, requires_grad=True)
        out = normalizer(weight.square() * loss)
        out.backward()
        # out = k w² with a constant k; a gradient through the scale would be smaller.
        torch.testing.assert_close(weight.grad, 2 * out.detach() / 2.0, rtol=1e-5, atol=0)
        assert not any(b.requires_grad for b in normalizer.buffers())


def test_evaluation_uses_the_statistics_of_training_and_does_not_change_them():
    normalizer = LossNormalizer()
    for loss in LOSSES:
        normalizer(loss)
    before = {name: b.clone() for name, b in normalizer.state_dict().items()}
    normalizer.eval()
    one, two = normalizer(torch.tensor(1.0)), normalizer(torch.tensor(1000.0))
    assert all(torch.equal(b, before[name]) for name, b in normalizer.state_dict().items())
    torch.testing.assert_close(two, one * 1000)
    torch.testing.assert_close(one, (before["weight"] / before["mean_square"]).sqrt())


def test_a_loaded_state_continues_equally():
    original, loaded = LossNormalizer(), LossNormalizer()
    for loss in LOSSES[:7]:
        original(loss)
    loaded.load_state_dict(original.state_dict())
    assert len(original.state_dict()) == 2
    for loss in LOSSES[7:]:
        assert torch.equal(original(loss), loaded(loss))
