"""Properties specific to the masked autoencoder; those of every tokenizer are in test_contract.py."""

import pytest
import torch
from factories import masked_autoencoder

from vwm.nn.pixels import patchify
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.masked_autoencoder import MaskedAutoencoderTokenizer


def visible_patches(network: MaskedAutoencoderTokenizer, frames: int = 40) -> torch.Tensor:
    """Whether each patch influences the latents of its frame, bool [frames, n]."""
    torch.manual_seed(0)
    video = (torch.rand(frames, 1, 3, 16, 16) * 2 - 1).requires_grad_()
    network(video).latents.square().sum().backward()
    assert video.grad is not None
    return patchify(video.grad, network.patch_size)[:, 0].abs().sum(-1) > 0


def test_every_frame_has_its_own_mask_rate_in_training():
    visible_fraction = visible_patches(masked_autoencoder(max_mask_rate=0.9).train()).double().mean(dim=1)
    assert abs(visible_fraction.mean() - 0.55) < 0.1
    assert visible_fraction.min() < 0.25 and visible_fraction.max() > 0.85
    for unmasked in (masked_autoencoder(max_mask_rate=0.9).eval(), masked_autoencoder(max_mask_rate=0.0).train()):
        assert visible_patches(unmasked).all()


def test_encoder_latents_attend_to_all_tokens_and_decoder_patches_do_too():
    network = masked_autoencoder().eval()
    num_latents = network.tokens_per_frame
    assert network.encoder_mask[:num_latents].all() and not network.encoder_mask[num_latents:, :num_latents].any()
    assert network.decoder_mask[num_latents:].all() and not network.decoder_mask[:num_latents, num_latents:].any()


def test_latents_are_bounded_before_normalization():
    network = masked_autoencoder().eval()
    with torch.no_grad():
        for weight in (network.squeeze.weight, network.embed.weight):
            weight.mul_(50)
    clips = torch.randint(0, 256, (4, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        before, reconstruction = network.encode(video), network.decode(network.encode(video))
        assert 0.9 < before.abs().max() <= 1
        mean, std = (torch.tensor(statistic) for statistic in measure_latent_statistics(network, [clips]))
        torch.testing.assert_close(network.encode(video), (before - mean) / std)
        torch.testing.assert_close(network.decode(network.encode(video)), reconstruction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 must divide"),
        ({"max_mask_rate": 1.0}, r"max_mask_rate=1\.0"),
        ({"latents_mean": [0.0]}, "need 4 values, got 1, 4"),
    ],
)
def test_rejects_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        masked_autoencoder(**settings)
