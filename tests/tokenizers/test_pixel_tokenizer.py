"""Pixels as latents: lossless and normalized."""

import pytest
import torch

from vwm.core.components import load_component, save_component
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_decoding_restores_every_pixel_value_exactly(patch, tmp_path):
    save_component(PixelTokenizer((16, 32), patch_size=patch, pixel_mean=-0.1, pixel_std=0.45), tmp_path / "tokenizer")
    network = load_component(tmp_path / "tokenizer")
    frames = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 2, 16, 32, 3)
    latents = network.encode(frames_to_float(frames))
    assert latents.shape == (1, 2, 16 // patch, 32 // patch, 3 * patch**2) == (1, 2, *network.grid, network.channels)
    assert torch.equal(video_to_uint8(network.decode(latents)), frames)


def test_a_latent_contains_the_pixels_of_its_patch():
    video = torch.zeros(1, 1, 3, 8, 8)
    video[..., 4:6, 2:4] = 1
    latents = PixelTokenizer((8, 8), patch_size=2, pixel_std=0.5).encode(video)[0, 0]
    assert (latents[2, 1] == 2).all() and latents.abs().sum() == 2 * 12


def test_rejects_patches_that_do_not_divide_the_image_and_zero_deviation():
    with pytest.raises(ValueError, match="patch_size=3 must divide"):
        PixelTokenizer((16, 16), patch_size=3)
    with pytest.raises(ValueError, match=r"pixel_std=0\.0"):
        PixelTokenizer((16, 16), pixel_std=0.0)
