"""Observations in and out: what is prepared can be undone, and the error is the paper's."""

import math

import pytest
import torch
from torch.distributions import Normal

from vwm.models.rssm.observation_models import ImageObservationModel, VectorObservationModel
from vwm.nn.two_hot import symlog

PICTURES = torch.arange(256, dtype=torch.uint8).repeat(6).view(1, 2, 16, 16, 3)


def pictures(**changes) -> ImageObservationModel:
    torch.manual_seed(0)
    return ImageObservationModel((16, 16), 8, 4, **{"depth": 4, "mults": (1, 2), "width": 4, "blocks": 2, **changes})


def test_what_is_prepared_can_be_undone():
    for bits in range(1, 9):
        model = pictures(pixel_bits=bits).eval()
        prepared = model.preprocess(PICTURES)
        assert prepared.shape == (1, 2, 3, 16, 16) and -0.5 <= prepared.min() and prepared.max() <= 0.5
        apart = (model.postprocess(prepared).int() - PICTURES.int()).abs().max()
        assert apart == 0 if bits == 8 else apart <= 256 // 2**bits // 2
    x = torch.randn(2, 3, 5) * 100
    for squeezed in (True, False):
        model = VectorObservationModel(5, 6, symlog=squeezed)
        torch.testing.assert_close(model.postprocess(model.preprocess(x)), x, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.preprocess(x), symlog(x) if squeezed else x)


def test_cut_bits_are_filled_with_noise_in_training_alone():
    model = pictures(pixel_bits=5)
    torch.manual_seed(0)
    one, two = model.preprocess(PICTURES), model.preprocess(PICTURES)
    assert not torch.equal(one, two) and torch.equal(((one + 0.5) * 32).floor(), ((two + 0.5) * 32).floor())
    levels = (PICTURES // 8).permute(0, 1, 4, 2, 3).float()
    assert torch.equal(((one + 0.5) * 32).floor(), levels)
    assert torch.equal(model.eval().preprocess(PICTURES), (levels + 0.5) / 32 - 0.5)


def test_the_error_is_summed_and_under_unit_variance_the_likelihoods():
    features = torch.randn(1, 2, 12)
    constant = 0.5 * math.log(2 * math.pi)
    for model, seen in ((pictures(), PICTURES), (VectorObservationModel(5, 12, 8, 1), torch.randn(1, 2, 5))):
        prepared = model.preprocess(seen)
        means = model.decode(features)
        assert means.shape == prepared.shape
        squared = (means - prepared).square().flatten(2).sum(-1)
        torch.testing.assert_close(model.loss(features, prepared), squared)
        model.loss_scale = 0.5
        likelihood = (-Normal(means, 1).log_prob(prepared) - constant).flatten(2).sum(-1)
        torch.testing.assert_close(model.loss(features, prepared), likelihood, rtol=1e-4, atol=1e-3)
    assert pictures(reconstruction_loss="normal").loss_scale == 0.5


def test_rejects_discrete_actions_out_of_range():
    for changes, message in (
        ({"network": "unet"}, "network='unet'"),
        ({"network": "plain"}, "64x64 pixels, not 16x16"),
        ({"pixel_bits": 9}, "pixel_bits=9"),
        ({"reconstruction_loss": "l1"}, "reconstruction_loss='l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            pictures(**changes)
    with pytest.raises(ValueError, match="layers=0"):
        VectorObservationModel(5, 6, layers=0)
