import pytest
import torch
from factories import randomize
from torch.nn import functional as F

from vwm.core.components import load_component, save_component
from vwm.models.tdmpc2.world_model import TDMPC2WorldModel, random_shift

SMALL = {"action_dims": 2, "latent_size": 16, "width": 12, "encoder_width": 10, "num_bins": 11, "symlog_limit": 3.0}


def model(**changes) -> TDMPC2WorldModel:
    torch.manual_seed(0)
    return randomize(TDMPC2WorldModel(**{**SMALL, "vector_size": 3, **changes}))


def test_latents_are_simplices_wherever_they_come_from():
    made = model()
    latent = made.encode(torch.randn(4, 5, 1, 3))
    for stage in (latent, made.next_latent(latent, torch.randn(4, 5, 2))):
        assert stage.shape == (4, 5, 16)
        torch.testing.assert_close(stage.unflatten(-1, (2, 8)).sum(-1), torch.ones(4, 5, 2))


def test_a_window_of_vectors_is_encoded_whole():
    made = model(num_stacked_frames=2)
    window = torch.randn(4, 2, 3)
    for i in range(2):
        other = window.clone()
        other[:, i] += 1
        assert not torch.allclose(made.encode(window), made.encode(other))


@pytest.mark.parametrize(("side", "latent"), [(64, 64), (40, 16)])  # without and with a matrix at the end
def test_pictures_go_through_four_convolutions(side, latent):
    made = model(
        vector_size=None, image_size=(side, side), num_stacked_frames=3, image_channels=4, latent_size=latent
    ).double()
    window = torch.randint(0, 256, (2, 3, side, side, 3), dtype=torch.uint8)
    x = torch.cat([window[:, i].permute(0, 3, 1, 2) for i in range(3)], dim=1).double() / 255 - 0.5
    for i, (stride, layer) in enumerate(zip((2, 2, 2, 1), made.encoder.layers, strict=True)):
        x = F.conv2d(x.relu() if i else x, layer.weight, layer.bias, stride)
    x = x.flatten(1)
    assert (made.encoder.output is None) == (side == 64)
    x = x if made.encoder.output is None else made.encoder.output(x)
    torch.testing.assert_close(made.encode(window), x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2))
    torch.testing.assert_close(made.encode(window[:, None])[:, 0], made.encode(window))


def test_small_pictures_and_latents_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="38x64 pixels are too small"):
        model(vector_size=None, image_size=(38, 64))
    for size in (3, None):
        with pytest.raises(ValueError, match="12 must be divisible by simplex"):
            model(vector_size=size, latent_size=12)


def test_rewards_are_0_at_first_and_ends_are_told_only_with_a_head():
    torch.manual_seed(0)
    fresh = TDMPC2WorldModel(**SMALL, vector_size=3)
    latent, action = fresh.encode(torch.randn(4, 1, 3)), torch.randn(4, 2)
    assert fresh.predict_reward(latent, action).abs().max() < 1e-5 and fresh.termination_logits(latent) is None
    made = model(predict_termination=True)
    assert made.termination_logits(latent).shape == (4,) and made.predict_reward(latent, action).abs().min() > 0


def test_saved_is_loaded(tmp_path):
    made = model(predict_termination=True, num_stacked_frames=2)
    save_component(made, tmp_path / "part")
    again, window = load_component(tmp_path / "part"), torch.randn(4, 2, 3)
    assert torch.equal(again.encode(window), made.encode(window))
    assert torch.equal(again.termination_logits(again.encode(window)), made.termination_logits(made.encode(window)))


def test_shifted_pictures_move_together_in_a_window_and_repeat_their_edges():
    torch.manual_seed(0)
    window = torch.randint(0, 256, (40, 2, 9, 11, 3), dtype=torch.uint8)
    shifted, seen = random_shift(window, max_shift=2), set()
    padded = F.pad(window.flatten(0, 1).permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="replicate")
    padded = padded.permute(0, 2, 3, 1).unflatten(0, (40, 2)).byte()
    for i in range(40):
        places = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(shifted[i], padded[i, :, y : y + 9, x : x + 11])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len({y for y, _ in seen}) == len({x for _, x in seen}) == 5
