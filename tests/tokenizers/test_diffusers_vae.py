"""A diffusers autoencoder behind the VideoTokenizer interface gives exactly the original's results."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from factories import DIFFUSERS_VAES, dit

import vwm
from vwm.core.components import ComponentError
from vwm.core.frames import video_to_uint8
from vwm.core.spaces import ActionSpace
from vwm.models.dit.sampling import DiffusionSampling
from vwm.models.dit.simulator import DiTSimulator
from vwm.tokenizers.diffusers_vae import SUPPORTED_DIFFUSERS_VAES, DiffusersTokenizer, diffusers_latent_statistics
from vwm.tokenizers.loading import load_tokenizer
from vwm.worlds.bundle import save_simulator


@pytest.fixture(params=list(DIFFUSERS_VAES))
def vae(request):
    torch.manual_seed(0)
    return getattr(diffusers, request.param)(**DIFFUSERS_VAES[request.param]).eval()


def video(size: int = 16) -> torch.Tensor:
    return torch.rand(2, 5, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_latents_and_frames_equal_those_of_the_original_autoencoder(vae):
    tokenizer, x = DiffusersTokenizer.from_vae(vae, (16, 16)), video()
    latents = tokenizer.encode(x)
    reconstruction = tokenizer.decode(latents)
    flat = x.flatten(0, 1)[:, :, None] if tokenizer.has_time_axis else x.flatten(0, 1)
    raw_latents = vae.encode(flat).latent_dist.mode()
    mean, std = diffusers_latent_statistics(dict(vae.config), tokenizer.channels)
    ones = [1] * (raw_latents.ndim - 2)
    expected = (raw_latents - mean.view(1, -1, *ones)) / std.view(1, -1, *ones)
    decoded = vae.decode(expected * std.view(1, -1, *ones) + mean.view(1, -1, *ones)).sample
    if tokenizer.has_time_axis:
        expected, decoded = expected[:, :, 0], decoded[:, :, 0]
    assert latents.shape == (2, 5, *tokenizer.grid, tokenizer.channels)
    assert torch.equal(latents.flatten(0, 1).permute(0, 3, 1, 2), expected)
    assert torch.equal(reconstruction.flatten(0, 1), decoded)


@torch.no_grad()
def test_folders_of_autoencoders_and_pipelines_load_as_tokenizers(tmp_path):
    vae = diffusers.AutoencoderKL(**DIFFUSERS_VAES["AutoencoderKL"]).eval()
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        by_size = load_tokenizer(folder, image_size=(32, 16))
        by_grid = load_tokenizer(folder, grid=by_size.grid)
        assert isinstance(by_grid, DiffusersTokenizer) and by_grid.image_size == (32, 16)
        assert not any(p.requires_grad for p in by_grid.parameters()) and not by_grid.training
        x = torch.cat((video(), video()), dim=3)
        # Not bit-equal: the memory layout of weights can change the order of a sum.
        torch.testing.assert_close(by_grid.encode(x), DiffusersTokenizer.from_vae(vae, (32, 16)).encode(x))
    with pytest.raises(ValueError, match="give image_size"):
        load_tokenizer(tmp_path / "pipeline")


@torch.no_grad()
def test_a_bundle_with_a_diffusers_tokenizer_loads_and_steps_equally(vae, tmp_path):
    tokenizer = DiffusersTokenizer.from_vae(vae, image_size=(16, 16)).requires_grad_(False)
    dynamics = dit(grid=tokenizer.grid, channels=tokenizer.channels)
    world = DiTSimulator(tokenizer, dynamics, None, ActionSpace("discrete", 4), sampling=DiffusionSampling(steps=2))
    save_simulator(world, tmp_path / "bundle")
    assert str(tmp_path) not in (tmp_path / "bundle" / "tokenizer" / "config.json").read_text()
    loaded = vwm.load(tmp_path / "bundle", "cpu")
    expected, actual = (
        w.step(w.reset(video_to_uint8(video()))[0], torch.tensor([1, 2]))[1].latent for w in (world, loaded)
    )
    torch.testing.assert_close(expected, actual)


def test_rejects_broken_folders_and_unsupported_classes(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "latent_channels": 8, "z_dim": 8}))
    with pytest.raises(ComponentError, match=r"and config\.json describes"):
        load_tokenizer(tmp_path / "vae", image_size=(16, 16))
    config.write_text(json.dumps({**settings, "_class_name": "UNet2DModel"}))
    with pytest.raises(ComponentError, match="does not name its class"):
        load_tokenizer(tmp_path / "vae", image_size=(16, 16))
    with pytest.raises(ValueError, match="'VQModel' must be one of AutoencoderKL, "):
        DiffusersTokenizer((16, 16), "VQModel", {})
    with pytest.raises(ValueError, match="must divide image_size=17x16"):
        DiffusersTokenizer.from_vae(vae, (17, 16))


def test_latent_statistics_are_read_from_the_settings():
    mean, std = diffusers_latent_statistics(
        {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [5.0, 6.0, 7.0, 8.0]}, 2
    )
    assert mean.tolist() == [1, 3] and std.tolist() == [5, 7]  # Cosmos: the statistics of the first of two frames
    mean, std = diffusers_latent_statistics({"latents_mean": None, "scaling_factor": 0.5, "shift_factor": 0.25}, 2)
    assert mean.tolist() == [0.25, 0.25] and std.tolist() == [2, 2]
    assert set(SUPPORTED_DIFFUSERS_VAES) == set(DIFFUSERS_VAES)
