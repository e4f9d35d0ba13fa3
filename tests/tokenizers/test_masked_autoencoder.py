"""The masked autoencoder, beyond what ``test_contract.py`` demands of every tokenizer."""

import pytest
import torch
from factories import masked_autoencoder

from vwm.nn.pixels import patchify
from vwm.tokenizers.latent_statistics import measure_latent_statistics
from vwm.tokenizers.masked_autoencoder import MaskedAutoencoderTokenizer


def seen_patches(network: MaskedAutoencoderTokenizer, frames: int = 40) -> torch.Tensor:
    """Whether a patch has any influence on the latents of its own clip (of one frame): bool [frames, n]."""
    torch.manual_seed(0)
    video = (torch.rand(frames, 1, 3, 16, 16) * 2 - 1).requires_grad_()
    network(video).latents.square().sum().backward()
    assert video.grad is not None
    return patchify(video.grad, network.patch_size)[:, 0].abs().sum(-1) > 0


def test_in_training_every_frame_hides_its_own_share_of_patches():
    shown = seen_patches(masked_autoencoder(max_mask_rate=0.9).train()).double().mean(dim=1)
    assert abs(shown.mean() - 0.55) < 0.1
    assert shown.min() < 0.25 and shown.max() > 0.85
    for open_eyed in (masked_autoencoder(max_mask_rate=0.9).eval(), masked_autoencoder(max_mask_rate=0.0).train()):
        assert seen_patches(open_eyed).all()


def test_latents_gather_from_the_patches_and_patches_from_the_latents():
    network = masked_autoencoder().eval()
    latents = network.tokens_per_frame
    assert network.encoder_mask[:latents].all() and not network.encoder_mask[latents:, :latents].any()
    assert network.decoder_mask[latents:].all() and not network.decoder_mask[:latents, latents:].any()


def test_latents_lie_within_the_bound_until_they_are_normalized():
    network = masked_autoencoder().eval()
    with torch.no_grad():
        for weight in (network.squeeze.weight, network.embed.weight):
            weight.mul_(50)
    clips = torch.randint(0, 256, (4, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        before, shown = network.encode(video), network.decode(network.encode(video))
        assert 0.9 < before.abs().max() <= 1
        mean, std = (torch.tensor(of) for of in measure_latent_statistics(network, [clips]))
        torch.testing.assert_close(network.encode(video), (before - mean) / std)
        torch.testing.assert_close(network.decode(network.encode(video)), shown, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 5}, "patch_size=5 must divide"),
        ({"max_mask_rate": 1.0}, r"max_mask_rate=1\.0"),
        ({"latents_mean": [0.0]}, "need 4 values, got 1, 4"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        masked_autoencoder(**settings)
