"""Observation models: postprocessing inverts preprocessing, and losses equal the papers'."""

import math

import pytest
import torch
from torch.distributions import Normal

from vwm.models.rssm.observation_models import ImageObservationModel, VectorObservationModel
from vwm.nn.two_hot import symlog

IMAGES = torch.arange(256, dtype=torch.uint8).repeat(6).view(1, 2, 16, 16, 3)


def make_image_model(**changes) -> ImageObservationModel:
    torch.manual_seed(0)
    return ImageObservationModel((16, 16), 8, 4, **{"depth": 4, "mults": (1, 2), "width": 4, "blocks": 2, **changes})


def test_postprocess_inverts_preprocess():
    for bits in range(1, 9):
        model = make_image_model(pixel_bits=bits).eval()
        prepared = model.preprocess(IMAGES)
        assert prepared.shape == (1, 2, 3, 16, 16) and -0.5 <= prepared.min() and prepared.max() <= 0.5
        error = (model.postprocess(prepared).int() - IMAGES.int()).abs().max()
        assert error == 0 if bits == 8 else error <= 256 // 2**bits // 2
    x = torch.randn(2, 3, 5) * 100
    for use_symlog in (True, False):
        model = VectorObservationModel(5, 6, symlog=use_symlog)
        torch.testing.assert_close(model.postprocess(model.preprocess(x)), x, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.preprocess(x), symlog(x) if use_symlog else x)


def test_dropped_bits_are_filled_with_noise_in_training_only():
    model = make_image_model(pixel_bits=5)
    torch.manual_seed(0)
    one, two = model.preprocess(IMAGES), model.preprocess(IMAGES)
    assert not torch.equal(one, two) and torch.equal(((one + 0.5) * 32).floor(), ((two + 0.5) * 32).floor())
    levels = (IMAGES // 8).permute(0, 1, 4, 2, 3).float()
    assert torch.equal(((one + 0.5) * 32).floor(), levels)
    assert torch.equal(model.eval().preprocess(IMAGES), (levels + 0.5) / 32 - 0.5)


def test_the_loss_is_the_summed_squared_error_or_the_unit_variance_likelihood():
    features = torch.randn(1, 2, 12)
    constant = 0.5 * math.log(2 * math.pi)
    for model, observation in (
        (make_image_model(), IMAGES),
        (VectorObservationModel(5, 12, 8, 1), torch.randn(1, 2, 5)),
    ):
        prepared = model.preprocess(observation)
        means = model.decode(features)
        assert means.shape == prepared.shape
        squared = (means - prepared).square().flatten(2).sum(-1)
        torch.testing.assert_close(model.loss(features, prepared), squared)
        model.loss_scale = 0.5
        likelihood = (-Normal(means, 1).log_prob(prepared) - constant).flatten(2).sum(-1)
        torch.testing.assert_close(model.loss(features, prepared), likelihood, rtol=1e-4, atol=1e-3)
    assert make_image_model(reconstruction_loss="normal").loss_scale == 0.5


def test_rejects_invalid_settings():
    for changes, message in (
        ({"network": "unet"}, "network='unet'"),
        ({"network": "plain"}, "64x64 pixels, not 16x16"),
        ({"pixel_bits": 9}, "pixel_bits=9"),
        ({"reconstruction_loss": "l1"}, "reconstruction_loss='l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_image_model(**changes)
    with pytest.raises(ValueError, match="layers=0"):
        VectorObservationModel(5, 6, layers=0)
