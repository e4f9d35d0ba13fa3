"""Reconstruction by a tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.simulator import Simulator
from vwm.eval.reconstruction import mean_image, reconstruct_clips
from vwm.models.genie.simulator import GenieSimulator


def test_the_mean_image_averages_all_frames() -> None:
    frames = torch.tensor([[0, 10], [20, 31]], dtype=torch.uint8)[:, :, None, None, None].expand(-1, -1, 2, 2, 3)
    assert mean_image(frames).shape == frames.shape
    assert mean_image(frames).unique().tolist() == [15]


def test_reconstructions_do_not_depend_on_the_batch_size(genie: Callable[..., GenieSimulator]) -> None:
    world = genie()
    tokenizer = world.tokenizer
    frames = torch.randint(0, 255, (5, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reconstructed, tokens = reconstruct_clips(world, frames, batch_size=2)
    assert tokens.shape == (5, 4, 2, 2)
    with torch.no_grad():
        assert torch.equal(tokens, tokenizer.encode(frames_to_float(frames)))
        expected = video_to_uint8(tokenizer.decode(tokens))
    assert (reconstructed.int() - expected.int()).abs().max() <= 1


def test_reconstruction_supports_continuous_latents(brightness_world: VideoSimulator) -> None:
    frames = torch.randint(0, 255, (3, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reconstructed, latents = reconstruct_clips(brightness_world, frames, batch_size=2)
    assert torch.equal(reconstructed, frames) and latents.shape == (3, 4, 16, 16, 3)


def test_a_simulator_without_a_tokenizer_shows_frames_as_they_are(make_world: Callable[..., Simulator]) -> None:
    frames = torch.randint(0, 255, (3, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reconstructed, latents = reconstruct_clips(make_world(), frames, batch_size=2)
    assert torch.equal(reconstructed, frames) and latents is None
