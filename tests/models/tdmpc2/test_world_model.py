import pytest
import torch
from factories import randomize
from torch.nn import functional as F

from vwm.core.components import load_component, save_component
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel
from vwm.nn.image_augmentation import random_shift

SMALL = {"action_dims": 2, "latent_size": 16, "width": 12, "encoder_width": 10, "num_bins": 11, "symlog_limit": 3.0}


def make_model(**changes) -> TDMPC2WorldModel:
    torch.manual_seed(0)
    return randomize(TDMPC2WorldModel(**{**SMALL, "vector_size": 3, **changes}))


def test_encoded_and_predicted_latents_are_simplices():
    model = make_model()
    latent = model.encode(torch.randn(4, 5, 1, 3))
    for stage in (latent, model.next_latent(latent, torch.randn(4, 5, 2))):
        assert stage.shape == (4, 5, 16)
        torch.testing.assert_close(stage.unflatten(-1, (2, 8)).sum(-1), torch.ones(4, 5, 2))


def test_encoding_depends_on_all_vectors_of_the_window():
    model = make_model(num_stacked_frames=2)
    window = torch.randn(4, 2, 3)
    for i in range(2):
        other = window.clone()
        other[:, i] += 1
        assert not torch.allclose(model.encode(window), model.encode(other))


@pytest.mark.parametrize(("side", "latent"), [(64, 64), (40, 16)])  # without and with a linear output layer
def test_images_are_encoded_by_four_convolutions(side, latent):
    model = make_model(
        vector_size=None, image_size=(side, side), num_stacked_frames=3, image_channels=4, latent_size=latent
    ).double()
    window = torch.randint(0, 256, (2, 3, side, side, 3), dtype=torch.uint8)
    x = torch.cat([window[:, i].permute(0, 3, 1, 2) for i in range(3)], dim=1).double() / 255 - 0.5
    for i, (stride, layer) in enumerate(zip((2, 2, 2, 1), model.encoder.layers, strict=True)):
        x = F.conv2d(x.relu() if i else x, layer.weight, layer.bias, stride)
    x = x.flatten(1)
    assert (model.encoder.output is None) == (side == 64)
    x = x if model.encoder.output is None else model.encoder.output(x)
    torch.testing.assert_close(model.encode(window), x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2))
    torch.testing.assert_close(model.encode(window[:, None])[:, 0], model.encode(window))


def test_rejects_too_small_images_and_latent_sizes_that_simplex_does_not_divide():
    with pytest.raises(ValueError, match="38x64 pixels are too small"):
        make_model(vector_size=None, image_size=(38, 64))
    for size in (3, None):
        with pytest.raises(ValueError, match="12 must be divisible by simplex"):
            make_model(vector_size=size, latent_size=12)


def test_initial_rewards_are_0_and_terminations_are_predicted_only_with_a_head():
    torch.manual_seed(0)
    fresh = TDMPC2WorldModel(**SMALL, vector_size=3)
    latent, action = fresh.encode(torch.randn(4, 1, 3)), torch.randn(4, 2)
    assert fresh.predict_reward(latent, action).abs().max() < 1e-5 and fresh.termination_logits(latent) is None
    model = make_model(predict_termination=True)
    assert model.termination_logits(latent).shape == (4,) and model.predict_reward(latent, action).abs().min() > 0


def test_a_loaded_model_equals_the_saved_one(tmp_path):
    model = make_model(predict_termination=True, num_stacked_frames=2)
    save_component(model, tmp_path / "part")
    loaded, window = load_component(tmp_path / "part"), torch.randn(4, 2, 3)
    assert torch.equal(loaded.encode(window), model.encode(window))
    assert torch.equal(loaded.termination_logits(loaded.encode(window)), model.termination_logits(model.encode(window)))


def test_random_shifts_are_equal_within_a_window_and_repeat_edge_pixels():
    torch.manual_seed(0)
    window = torch.randint(0, 256, (40, 2, 9, 11, 3), dtype=torch.uint8)
    shifted, offsets = random_shift(window, max_shift=2), set()
    padded = F.pad(window.flatten(0, 1).permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate")
    padded = padded.permute(0, 2, 3, 1).unflatten(0, (40, 2)).byte()
    for i in range(40):
        matches = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(shifted[i], padded[i, :, y : y + 9, x : x + 11])
        ]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len({y for y, _ in offsets}) == len({x for _, x in offsets}) == 5
