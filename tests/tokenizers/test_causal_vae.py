"""Properties specific to the causal VAE; those of every tokenizer are in test_contract.py."""

import pytest
import torch
from factories import randomize

from vwm.core.components import load_component, save_component
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.tiling import decode_tiled, encode_tiled

SMALL = {"latent_channels": 4, "patch_size": 2, "widths": [8, 8], "depths": [1, 1]}


def vae(size: tuple[int, int] = (16, 16), **changes) -> CausalVAE:
    torch.manual_seed(0)
    return randomize(CausalVAE(size, **{**SMALL, **changes})).double().eval()


def video(frames: int, size: tuple[int, int] = (16, 16), batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, frames, 3, *size, dtype=torch.float64, generator=generator) * 2 - 1


@pytest.mark.parametrize("time", [1, 2, 4, 8])
@pytest.mark.parametrize(("patch", "levels"), [(4, 1), (2, 2), (8, 1), (2, 4), (4, 3), (8, 3)])
def test_space_and_time_compression_follow_the_settings(time, patch, levels):
    shape = {"patch_size": patch, "widths": [4] * levels, "depths": [1] * levels, "time_compression": time}
    network, side = vae((32, 64), **shape), patch * 2 ** (levels - 1)
    assert network.space_compression == side and network.grid == (32 // side, 64 // side)
    for groups in (0, 1):
        x = video(1 + groups * time, (32, 64))
        latents = network.encode(x)
        assert latents.shape == (1, 1 + groups, *network.grid, 4)
        assert network.decode(latents).shape == x.shape


@pytest.mark.parametrize("time", [2, 8])
@pytest.mark.parametrize("levels", [1, 2])
def test_streaming_equals_parallel_for_every_distribution_of_time_compression_over_levels(time, levels):
    network = vae(time_compression=time, widths=[8] * levels, depths=[1] * levels)
    x = video(17)
    latents = network.encode(x)
    reconstruction = network.decode(latents)
    for length in (1, 3, 5):
        state, outputs = network.init_encoder(1), []
        for chunk in x.split(length, dim=1):
            state, output = network.encode_step(state, chunk)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs, dim=1), latents, rtol=0, atol=1e-10)
    state, outputs = network.init_decoder(1), []
    for chunk in latents.split(1, dim=1):
        state, output = network.decode_step(state, chunk)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), reconstruction, rtol=0, atol=1e-10)


def test_an_untrained_network_reconstructs_smooth_images():
    ramp = torch.linspace(-0.8, 0.8, 16)
    x = (ramp[:, None] + ramp).div(2).expand(1, 5, 3, 16, 16)
    network = CausalVAE((16, 16), **SMALL).eval()
    torch.testing.assert_close(network(x).video, x, rtol=0, atol=0.2)
    assert (network(x).video - x).square().mean() < 0.02 * x.square().mean()


def test_an_untrained_network_without_compression_is_lossless():
    for channels in (12, 14):
        network = CausalVAE(
            (4, 4), **{**SMALL, "latent_channels": channels, "time_compression": 1, "widths": [8], "depths": [1]}
        )
        x = video(2, (4, 4)).float()
        torch.testing.assert_close(network.eval()(x).video, x)


def test_latents_are_noisy_in_training_only():
    network, x = vae(), video(5)
    assert torch.equal(network(x).video, network(x).video)
    network.train()
    assert not torch.equal(network(x).video, network(x).video)


def test_the_penalty_is_the_weighted_kl_divergence():
    network = vae(kl_weight=0.3)
    features, _ = network._encode(video(5), network.encoder.init_state(1, 16, 16))
    mean, log_variance = features.chunk(2, dim=-1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = 0.3 * torch.distributions.kl_divergence(posterior, prior).mean()
    torch.testing.assert_close(network(video(5)).penalty, expected)


def test_measured_latents_have_zero_mean_and_unit_deviation_also_when_reloaded(tmp_path):
    network = vae().float()
    clips = [torch.randint(0, 256, (2, frames, 16, 16, 3), dtype=torch.uint8) for frames in (5, 9, 8)]
    before = network.decode(network.encode(video(5).float()))
    for _ in range(2):  # measuring again changes nothing
        measure_latent_statistics(network, clips)
        save_component(network, tmp_path / "vae")
        reloaded = load_component(tmp_path / "vae")
        for model in (network, reloaded):
            torch.testing.assert_close(model.decode(model.encode(video(5).float())), before, rtol=0, atol=1e-4)
            encoded = [
                model.encode(c[:, : (c.shape[1] - 1) // 4 * 4 + 1].movedim(-1, 2) / 127.5 - 1).flatten(0, -2)
                for c in clips
            ]
            latents = torch.cat(encoded)
            torch.testing.assert_close(latents.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
            torch.testing.assert_close(latents.std(0), torch.ones(4), rtol=0, atol=1e-2)


def test_latent_statistics_are_empty_for_tokens_and_require_clips():
    assert measure_latent_statistics(vae(codebook=[5, 4, 3, 3]), []) == ([], [])
    with pytest.raises(ValueError, match="no clips"):
        measure_latent_statistics(vae(), [])


@pytest.mark.parametrize("codebook", [None, [5, 4, 3, 3]], ids=["kl", "fsq"])
def test_tiled_results_are_exact_inside_a_tile_and_close_in_overlaps(codebook):
    network = vae((32, 64), codebook=codebook)
    x = video(5, (32, 64))
    latents = network.encode(x)
    tiled = encode_tiled(network, x, tile=10, overlap=4)
    # Tiles begin at columns 0 and 6; only the first has columns 0 to 5. The network sees three latents on each side.
    assert tiled.dtype == latents.dtype and tiled.shape == latents.shape
    torch.testing.assert_close(tiled[:, :, :, :6], latents[:, :, :, :6], rtol=0, atol=1e-10)
    decoded, tiled_decoded = network.decode(latents), decode_tiled(network, latents, tile=10, overlap=4)
    torch.testing.assert_close(tiled_decoded[..., :24], decoded[..., :24], rtol=0, atol=1e-10)
    assert (tiled_decoded - decoded).square().mean() < 0.2 * decoded.var()
    # One tile that covers everything.
    torch.testing.assert_close(decode_tiled(network, latents, tile=32), decoded, rtol=0, atol=1e-10)


def test_rejects_invalid_frames_and_settings():
    with pytest.raises(ValueError, match=r"6 frames: 4 frames per latent need 1 \+ 4 k frames, for example 5 or 9"):
        vae().encode(video(6))
    with pytest.raises(ValueError, match="0 frames"):
        vae()(video(0))
    with pytest.raises(ValueError, match="time_compression=3 must be a power of two"):
        vae(time_compression=3)
    with pytest.raises(ValueError, match=r"widths=\[8\] and depths=\[1, 1\]"):
        vae(widths=[8])
    with pytest.raises(ValueError, match="patch_size=4 must divide image_size=18x16"):
        vae((18, 16))
    with pytest.raises(ValueError, match="latents_mean and latents_std need 4 values, got 3, 4"):
        vae(latents_mean=[0.0] * 3)
    with pytest.raises(ValueError, match="overlap=10 must be at least 0 and less than tile=10"):
        encode_tiled(vae(), video(5), tile=10, overlap=10)
