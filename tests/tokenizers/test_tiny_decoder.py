"""TAEHV decoders: values of the original code, files with other weights, and their place in a world.

``test_contract.py`` compares their streams with whole clips.
"""

from __future__ import annotations

import pickle

import pytest
import torch
from factories import dit
from published_video_vaes import tiny_decoder_file, video_vae_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

import vwm
from vwm.core.components import ComponentError
from vwm.core.frames import video_to_uint8
from vwm.core.spaces import ActionSpace
from vwm.models.dit.sampling import DiffusionSampling
from vwm.models.dit.simulator import DiTSimulator
from vwm.tokenizers.video_vae.stream import Stream
from vwm.tokenizers.video_vae.tiny_decoder import (
    TinyDecoderConfig,
    TinyVideoDecoder,
    infer_tiny_decoder_config,
    read_tiny_decoder,
)
from vwm.tokenizers.video_vae.tiny_tokenizer import TinyDecoderTokenizer
from vwm.worlds.bundle import save_simulator

SMALL = TinyDecoderConfig(latent_channels=3, widths=(8, 6, 4, 4), patch_size=2)


def fill(decoder: TinyVideoDecoder, scale: float, first: int) -> None:
    """Give each weight values by its place among the names of encoder and decoder in alphabetical order."""
    with torch.no_grad():
        for k, (_, p) in enumerate(sorted(decoder.state_dict().items())):
            values = torch.arange(p.numel(), dtype=torch.float64).mul(0.37).add(first + k).sin().view(p.shape)
            p.copy_(values * (scale * p[0].numel() ** -0.5 if p.ndim > 1 else 0.1))
        decoder.state_dict()["decoder.22.bias"].fill_(0.5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("is_super", "scale", "expected"),
    [
        (False, 2.0, [-0.02355134242613, 0.49717063728627, -0.04984377897716, -0.06324664029383]),
        (True, 1.0, [-0.01676259185608, 0.00380397332666, -0.01545560584102, -0.01043532669095]),
    ],
)
def test_equals_the_original_code(is_super, scale, expected):
    """Values of ``taehv.py`` of madebyollin/taehv, whose widths were set to these, in float64."""
    decoder = TinyVideoDecoder(SMALL._replace(is_super=is_super)).double()
    fill(decoder, scale, first=0)
    z = torch.arange(72, dtype=torch.float64).mul(0.7).sin().view(2, 3, 3, 2, 2)
    video = decoder(z, Stream())
    assert video.shape == (2, 9, 3, 32, 32)
    actual = [video[0].mean(), video[1].square().mean(), video[:, -1].mean(), video[..., 0].mean()]
    assert [value.item() for value in actual] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("is_super", [False, True])
def test_sizes_follow_from_the_weights(suffix, is_super, tmp_path):
    config = TinyDecoderConfig(4, [8, 6, 4, 4], [2, 2, 2], 4, is_super)
    decoder = read_tiny_decoder(tiny_decoder_file(tmp_path / f"tae.{suffix}", config))
    assert infer_tiny_decoder_config(decoder) == config and decoder.time_compression == 8


def change(file, weights: dict[str, Tensor | None]) -> None:
    kept = load_file(file) | {name: weight for name, weight in weights.items() if weight is not None}
    save_file({name: weight for name, weight in kept.items() if weights.get(name, weight) is not None}, file)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"decoder.1.weight": None}, "it lacks \\('decoder.1.weight'\\)"),
        ({"decoder.3.conv.0.bias": None}, r"decoder.3.conv.0.bias is missing there and \[8\] here"),
        ({"decoder.4.conv.2.weight": torch.zeros(8, 8)}, r"decoder.4.conv.2.weight is \[8, 8\] there"),
        ({"encoder.4.conv.0.bias": None}, r"encoder.4.conv.0.bias is missing there"),
        ({"decoder.99.weight": torch.zeros(1)}, r"decoder.99.weight is \[1\] there and unknown here"),
        ({"decoder.22.bias": torch.full((3,), torch.nan)}, "not finite"),
    ],
)
def test_other_weights_are_named(weights, message, tmp_path):
    file = tiny_decoder_file(tmp_path / "tae.safetensors")
    change(file, weights)
    with pytest.raises(ComponentError, match=message):
        read_tiny_decoder(file)


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*tae\.pth"):
        read_tiny_decoder(tmp_path / "tae.pth")
    for name, content in (("a.pth", b"junk"), ("a.safetensors", b"junk"), ("b.pth", pickle.dumps(print))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ComponentError, match="cannot be read as weights"):
            read_tiny_decoder(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ComponentError, match="holds a list, not weights by name"):
        read_tiny_decoder(tmp_path / "list.pth")


@torch.no_grad()
def test_a_decoder_of_other_latents_is_refused(tmp_path):
    tokenizer = video_vae_tokenizer("wan8")
    for changes, message in (
        ({"latent_channels": 5}, "latents of 5 channels, and AutoencoderKLWan has 4"),
        ({"time_strides": (2, 2, 2)}, "latents of 8 frames, and AutoencoderKLWan has 4"),
        ({"patch_size": 2}, "latents of 16 pixels, and AutoencoderKLWan has 8"),
    ):
        file = tiny_decoder_file(tmp_path / "tae.safetensors", TinyDecoderConfig(4, (8,) * 4)._replace(**changes))
        with pytest.raises(ValueError, match=message):
            TinyDecoderTokenizer.of(tokenizer, file)


@torch.no_grad()
def test_latents_are_those_of_the_autoencoder(tmp_path):
    tokenizer = video_vae_tokenizer("wan8")
    tiny = TinyDecoderTokenizer.of(tokenizer, tiny_decoder_file(tmp_path / "tae.safetensors"))
    video = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tokenizer.encode(video)
    assert torch.equal(tiny.encode(video), latents)
    decoder = read_tiny_decoder(tmp_path / "tae.safetensors")
    assert torch.equal(tiny.decode(latents), decoder(latents.permute(0, 1, 4, 2, 3), Stream()))


@torch.no_grad()
def test_it_takes_the_place_of_the_decoder_in_a_world(tmp_path):
    tokenizer = video_vae_tokenizer("wan8")
    dynamics = dit(grid=tokenizer.grid, channels=tokenizer.channels, frames_per_latent=4)
    world = DiTSimulator(tokenizer, dynamics, None, ActionSpace("discrete", 4), sampling=DiffusionSampling(steps=2))
    save_simulator(world, tmp_path / "world")
    faster = vwm.load(tmp_path / "world", "cpu")
    file = tiny_decoder_file(tmp_path / "tae.safetensors")
    faster.tokenizer = TinyDecoderTokenizer.of(faster.tokenizer, file)
    save_simulator(faster, tmp_path / "faster")
    video = video_to_uint8(torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    steps = []
    for simulator in (world, faster, vwm.load(tmp_path / "faster", "cpu")):
        state, _ = simulator.reset(video)
        steps.append(simulator.step(state, torch.tensor([1, 2]))[1])
    assert all(torch.equal(step.latent, steps[0].latent) for step in steps)  # the dynamics are the same
    assert torch.equal(steps[1].frames, steps[2].frames) and not torch.equal(steps[0].frames, steps[1].frames)
