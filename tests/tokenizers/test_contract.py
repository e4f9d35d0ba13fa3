"""Properties of every tokenizer. Add new tokenizers to ``TOKENIZERS``.

Clips have nine frames: more than any window, and 1 + r k for time compressions r of 1, 2, 4 and 8.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from factories import diffusers_tokenizer, masked_autoencoder, randomize, representation_codec, tokenizer
from published_video_vaes import rae_vae, tiny_decoder_tokenizer, video_vae_tokenizer
from torch import Tensor

from vwm.core.blocks import find_blocks
from vwm.core.components import load_component, save_component
from vwm.core.states import select_worlds
from vwm.core.tokenizer import VideoTokenizer
from vwm.nn.recomputation import Recomputation, recompute_blocks
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE
from vwm.tokenizers.packed_vae import PackedVAE
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer
from vwm.tokenizers.rae_tokenizer import RAETokenizer

FRAMES, SIZE = 9, (16, 16)


def vae(**changes) -> CausalVAE:
    torch.manual_seed(0)
    settings = {"latent_channels": 4, "patch_size": 2, "widths": [8, 8], "depths": [1, 1]}
    return randomize(CausalVAE(SIZE, **{**settings, **changes}))


def frame_vae(**changes) -> FrameVAE:
    torch.manual_seed(0)
    return randomize(FrameVAE(SIZE, latent_size=6, widths=[8, 8], **changes))


def centered_frame_vae() -> FrameVAE:
    network = frame_vae(subtract_mean_frame=True)
    network.initialize_from_data(torch.rand(2, 1, 3, *SIZE) * 2 - 1)
    return network


def packed_vae() -> PackedVAE:
    inner = vae(time_compression=2)
    return randomize(PackedVAE({name: value for name, value in inner.config.items() if name[0] != "_"}, latents=2))


TOKENIZERS: dict[str, Callable[[], VideoTokenizer]] = {
    "space_time_fsq": tokenizer,
    "space_time_vq": lambda: tokenizer(36),
    "pixels": lambda: PixelTokenizer(SIZE),
    "pixel_patches": lambda: PixelTokenizer(SIZE, patch_size=4, pixel_mean=-0.2, pixel_std=0.4),
    "vae": lambda: vae(time_compression=1),
    "vae_time4": lambda: vae(time_compression=4),
    "packed_vae": packed_vae,
    "vae_fsq": lambda: vae(time_compression=1, codebook=[5, 4, 3, 3]),
    "vae_fsq_time4": lambda: vae(time_compression=4, codebook=[5, 4, 3, 3]),
    "frame_vae": frame_vae,
    "centered_frame_vae": centered_frame_vae,
    "masked_autoencoder": masked_autoencoder,
    "representation_codec": representation_codec,
    "diffusers_rae": lambda: RAETokenizer.from_vae(rae_vae()),
    "diffusers_image": lambda: diffusers_tokenizer("AutoencoderKL"),
    "diffusers_cogvideox": lambda: diffusers_tokenizer("AutoencoderKLCogVideoX"),
    "diffusers_cosmos": lambda: diffusers_tokenizer("AutoencoderKLCosmos"),
    "diffusers_wan": lambda: diffusers_tokenizer("AutoencoderKLWan"),
    "video_wan": lambda: video_vae_tokenizer("wan"),
    "video_wan22": lambda: video_vae_tokenizer("wan22"),
    "video_tiny_decoder": tiny_decoder_tokenizer,
    "video_cogvideox": lambda: video_vae_tokenizer("cogvideox"),
    "video_cosmos": lambda: video_vae_tokenizer("cosmos"),
    "video_cosmos_plain_patches": lambda: video_vae_tokenizer("cosmos_plain_patches"),
    "video_hunyuan": lambda: video_vae_tokenizer("hunyuan"),
    "video_hunyuan15": lambda: video_vae_tokenizer("hunyuan15"),
    "video_ltx_causal": lambda: video_vae_tokenizer("ltx_causal"),
    "video_ltx095_causal": lambda: video_vae_tokenizer("ltx095_causal"),
}


@pytest.fixture(params=list(TOKENIZERS), scope="module")
def network(request: pytest.FixtureRequest) -> VideoTokenizer:
    """A tokenizer in float64 and evaluation mode; tests do not modify it."""
    network = TOKENIZERS[request.param]().double().eval()
    return network.requires_grad_(False)


def clip(seed: int = 0) -> Tensor:
    return torch.rand(2, FRAMES, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same(one: Tensor, other: Tensor) -> None:
    """Check that tokens are equal and that floats agree to float64 rounding."""
    torch.testing.assert_close(one, other, rtol=0, atol=0 if not one.is_floating_point() else 1e-10)


def split_time(x: Tensor, lengths: list[int]) -> list[Tensor]:
    """Split a clip or its latents along time into chunks of these lengths; the last chunk has the remainder."""
    cuts = [min(sum(lengths[:i]), x.shape[1]) for i in range(len(lengths) + 1)] + [x.shape[1]]
    return [x[:, a:b] for a, b in pairwise(cuts) if b > a]


CHUNKS = [[1] * FRAMES, [FRAMES], [5, 4], [4, 5], [1, 6, 2], [2, 2, 2, 2, 1], [3, 1, 1, 4]]


def test_shapes_and_dtypes_follow_the_interface(network):
    latents = network.encode(clip())
    length = 1 + (FRAMES - 1) // network.time_compression
    assert bool(network.codebook_size) != bool(network.channels)
    if network.codebook_size:
        assert latents.shape == (2, length, *network.grid) and latents.dtype == torch.int64
        assert 0 <= latents.min() <= latents.max() < network.codebook_size
    else:
        assert latents.shape == (2, length, *network.grid, network.channels) and latents.is_floating_point()
    reconstruction = network.decode(latents)
    assert reconstruction.shape == clip().shape and latents.isfinite().all() and reconstruction.isfinite().all()
    assert network.image_size == SIZE and network.tokens_per_frame == network.grid[0] * network.grid[1]


def test_forward_equals_encode_then_decode(network):
    out = network(clip())
    assert_same(out.latents, network.encode(clip()))
    # VQ codes pass through the straight-through estimator, which rounds differently.
    torch.testing.assert_close(out.video, network.decode(out.latents), rtol=0, atol=1e-6)
    assert out.penalty.shape == () and out.penalty.isfinite()


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_streaming_equals_parallel(network, chunks):
    latents = network.encode(clip())
    reconstruction = network.decode(latents)
    state, outputs = network.init_encoder(2), []
    for chunk in split_time(clip(), chunks):
        state, output = network.encode_step(state, chunk)
        outputs.append(output)
    assert_same(torch.cat(outputs, dim=1), latents)
    state, outputs = network.init_decoder(2), []
    for chunk in split_time(latents, chunks):
        state, output = network.decode_step(state, chunk)
        outputs.append(output)
    assert_same(torch.cat(outputs, dim=1), reconstruction)


def test_a_latent_does_not_depend_on_later_frames(network):
    r = network.time_compression
    first_changed = 1 + 4 // r * r  # the first frame of a latent
    changed = clip()
    changed[:, first_changed:] = clip(1)[:, first_changed:]
    original, modified, first_latent = network.encode(clip()), network.encode(changed), 1 + (first_changed - 1) // r
    assert_same(original[:, :first_latent], modified[:, :first_latent])
    assert not torch.equal(original[:, first_latent:], modified[:, first_latent:])


def test_a_frame_does_not_depend_on_later_latents(network):
    r, latents = network.time_compression, network.encode(clip())
    first = 1 + 4 // r
    changed = torch.cat((latents[:, :first], network.encode(clip(1))[:, first:]), dim=1)
    original, modified, first_frame = network.decode(latents), network.decode(changed), 1 + (first - 1) * r
    assert_same(original[:, :first_frame], modified[:, :first_frame])
    assert not torch.equal(original[:, first_frame:], modified[:, first_frame:])


def test_states_are_values_that_can_be_branched(network):
    latents = network.encode(clip())
    encoder, _ = network.encode_step(network.init_encoder(2), clip()[:, :3])
    decoder, _ = network.decode_step(network.init_decoder(2), latents[:, :1])
    indices = torch.tensor([1, 0, 1])
    for step, state, rest in (
        (network.encode_step, encoder, clip()[:, 3:]),
        (network.decode_step, decoder, latents[:, 1:]),
    ):
        first, second = step(state, rest)[1], step(state, rest)[1]
        assert torch.equal(first, second)
        assert_same(step(select_worlds(state, indices), rest[indices])[1], first[indices])


def test_a_clip_does_not_depend_on_its_batch(network):
    latents = network.encode(clip())
    reconstruction = network.decode(latents)
    for i in range(2):
        assert_same(network.encode(clip()[i : i + 1]), latents[i : i + 1])
        assert_same(network.decode(latents[i : i + 1]), reconstruction[i : i + 1])


def test_rejects_frames_of_another_size(network):
    for wrong in (clip()[..., :8], clip()[:, :, :1]):
        with pytest.raises(ValueError, match=r"\[b, t, 3, 16, 16\]"):
            network.encode(wrong)
        with pytest.raises(ValueError, match=r"\[b, t, 3, 16, 16\]"):
            network.encode_step(network.init_encoder(2), wrong)


@torch.no_grad()
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_loaded_tokenizer_equals_the_saved_one(name, tmp_path):
    network, x = TOKENIZERS[name]().eval(), clip().float()
    save_component(network, tmp_path / "tokenizer")
    loaded = load_component(tmp_path / "tokenizer")
    assert type(loaded) is type(network) and not any(p.requires_grad for p in loaded.parameters())
    latents = network.encode(x)
    # The memory layout of weights can change the order of a sum.
    torch.testing.assert_close(loaded.encode(x), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.decode(latents), network.decode(latents), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if not name.startswith(("pixel", "diffusers", "video"))])
@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_does_not_change_gradients(name, recomputation):
    def gradients(recomputation: Recomputation) -> list[Tensor]:
        network = TOKENIZERS[name]().double().train()
        assert list(find_blocks(network))
        recompute_blocks(network, recomputation)
        torch.manual_seed(0)
        out = network(clip())
        (out.video.square().mean() + out.penalty).backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients("none"), gradients(recomputation), strict=True):
        assert_same(plain, recomputed)
