"""Video autoencoders of diffusers: equal to diffusers' own results on whole clips, and limits that are named.

``test_contract.py`` compares their streams with whole clips.
"""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan
from diffusers.models.normalization import RMSNorm
from factories import dit
from published_video_vaes import VIDEO_VAE_SETTINGS, video_vae, video_vae_tokenizer
from torch import Tensor, nn

import vwm
from vwm.core import network_base
from vwm.core.components import ComponentError
from vwm.core.frames import video_to_uint8
from vwm.core.spaces import ActionSpace
from vwm.models.dit.sampling import DiffusionSampling
from vwm.models.dit.simulator import DiTSimulator
from vwm.tokenizers.loading import load_tokenizer
from vwm.tokenizers.video_vae import tokenizer as tokenizer_module
from vwm.tokenizers.video_vae.adapter import VIDEO_VAES
from vwm.tokenizers.video_vae.statistics import video_latent_statistics
from vwm.tokenizers.video_vae.stream import make_streaming, streaming
from vwm.tokenizers.video_vae.tokenizer import VideoVAETokenizer
from vwm.worlds.bundle import save_simulator

FRAMES = 9


def clip(batch: int = 2, frames: int = FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, frames, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.fixture
def exact_diffusers(monkeypatch):
    """Let diffusers compute in float64 where it goes through float32."""

    def rms_norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    monkeypatch.setattr(autoencoder_kl_wan.WanUpsample, "forward", nn.Upsample.forward)
    monkeypatch.setattr(RMSNorm, "forward", rms_norm)


def own_results(vae: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """diffusers' latents [b, c, t, h, w] and reconstruction [b, t, 3, H, W]; it takes no batch for Hunyuan."""
    z = torch.cat([vae.encode(clip.transpose(1, 2)).latent_dist.mode() for clip in x.split(1)])
    arguments = {"temb": torch.zeros(1, dtype=x.dtype)} if vae.config.get("timestep_conditioning") else {}
    return z, torch.cat([vae.decode(clip, **arguments).sample.transpose(1, 2) for clip in z.split(1)])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in VIDEO_VAE_SETTINGS if name not in ("cogvideox", "hunyuan", "wan8")])
def test_whole_clips_equal_diffusers(name, exact_diffusers):
    vae = video_vae(name).double()
    expected = own_results(vae, clip())
    tokenizer = VideoVAETokenizer.from_vae(vae, (16, 16)).double()
    latents = tokenizer.encode(clip())
    mean, std = video_latent_statistics(vae.config, tokenizer.channels)
    rows = torch.arange(latents.shape[1]).clamp(max=len(mean) - 1)
    z = (latents * std[rows][:, None, None] + mean[rows][:, None, None]).permute(0, 4, 1, 2, 3)
    # Statistics from the config are float32 where diffusers stores them, and times 1 / scale where it divides.
    torch.testing.assert_close(z, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(tokenizer.decode(latents), expected[1], rtol=0, atol=1e-10)
    assert expected[1].std() > 0.05  # random weights do not make the comparison empty
    for own, before in zip(own_results(vae, clip()), expected, strict=True):
        assert torch.equal(own, before)  # its own methods work as before


@torch.no_grad()
def test_cogvideox_equals_diffusers_pass_by_pass():
    """Its norms depend on the passes, so that both get the same ones."""
    vae = video_vae("cogvideox").double()
    video = clip().transpose(1, 2)
    z = torch.randn(2, 4, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cases = [(vae.encoder, video.split([1, 4, 4], dim=2)), (vae.encoder, [video])]
    cases += [(vae.decoder, z.split([3, 2], dim=2)), (vae.decoder, z.split([1, 2, 2], dim=2))]
    expected = []
    for network, parts in cases:
        cache, outputs = None, []
        for part in parts:
            output, cache = network(part, conv_cache=cache)
            outputs.append(output)
        expected.append(torch.cat(outputs, dim=2))
    tokenizer = VideoVAETokenizer.from_vae(vae, (16, 16)).double()
    for (network, parts), own in zip(cases, expected, strict=True):
        past, outputs = (), []
        for part in parts:
            with streaming(past) as stream:
                outputs.append(network(part)[0])
            past = tuple(stream.kept)
        torch.testing.assert_close(torch.cat(outputs, dim=2), own, rtol=0, atol=1e-10)
    # The tokenizer normalizes the frames of a latent: the first one, then four each.
    mode = expected[0].chunk(2, dim=1)[0].permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(tokenizer.encode(clip()), mode / tokenizer.std, rtol=0, atol=1e-10)


@torch.no_grad()
def test_hunyuan_equals_diffusers_where_it_normalizes_over_the_whole_clip():
    vae = video_vae("hunyuan").double()
    video = clip().transpose(1, 2)
    z = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = vae.encoder(video), vae.decoder(z)
    assert all(own.std() > 0.05 for own in expected)
    tokenizer = VideoVAETokenizer.from_vae(vae, (16, 16)).double()
    for network, x, own in ((vae.encoder, video, expected[0]), (vae.decoder, z, expected[1])):
        with streaming(()):
            torch.testing.assert_close(network(x), own, rtol=0, atol=1e-10)
    # One frame is normalized by itself in both.
    own = vae.encode(video[:, :, :1]).latent_dist.mode()[:, :, 0].permute(0, 2, 3, 1) * vae.config.scaling_factor
    torch.testing.assert_close(tokenizer.encode(clip()[:, :1])[:, 0], own, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["wan", "cogvideox", "cosmos", "hunyuan", "hunyuan15", "ltx_causal"])
def test_long_clips_are_processed_in_passes_of_equal_results(name, monkeypatch):
    tokenizer, x = video_vae_tokenizer(name).double(), clip(frames=17)
    latents = tokenizer.encode(x)
    video = tokenizer.decode(latents)
    monkeypatch.setattr(tokenizer_module, "LATENTS_PER_PASS", 2)
    torch.testing.assert_close(tokenizer.encode(x), latents, rtol=0, atol=1e-10)
    torch.testing.assert_close(tokenizer.decode(latents), video, rtol=0, atol=1e-10)


def test_a_decoder_that_sees_later_latents_decodes_whole_clips_only():
    tokenizer = video_vae_tokenizer("ltx").double()
    latents = tokenizer.encode(clip())
    assert tokenizer.decode(latents).shape == clip().shape
    with pytest.raises(ValueError, match="AutoencoderKLLTXVideo is not causal"):
        tokenizer.decode_step(tokenizer.init_decoder(2), latents[:, :1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_inject_noise": (True,) * 5}, "decoder_inject_noise"),
        ({"encoder_causal": False}, "encoder_causal=False"),
        ({"patch_size_t": 2}, "patch_size_t=2 must be 1"),
    ],
)
def test_variants_of_ltx_that_are_no_causal_functions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VideoVAETokenizer((16, 16), "AutoencoderKLLTXVideo", VIDEO_VAE_SETTINGS["ltx"][1] | change)


@torch.no_grad()
def test_statistics_of_ltx_are_among_its_weights():
    vae = video_vae("ltx")
    plain = VideoVAETokenizer.from_vae(vae, (16, 16)).encode(clip().float())
    vae.latents_mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    vae.latents_std.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    tokenizer = VideoVAETokenizer.from_vae(vae, (16, 16))
    latents = tokenizer.encode(clip().float())
    torch.testing.assert_close(latents, (plain - vae.latents_mean) / vae.latents_std)
    raw = vae.decode(plain.permute(0, 4, 1, 2, 3)).sample.transpose(1, 2)
    torch.testing.assert_close(tokenizer.decode(latents), raw, rtol=1e-4, atol=1e-4)


def test_statistics_are_read_from_the_settings():
    mean, std = video_latent_statistics({"latents_mean": [1, 2, 3, 4], "latents_std": [5, 6, 7, 8]}, 2)
    assert mean.tolist() == [[1, 3], [2, 4]] and std.tolist() == [[5, 7], [6, 8]]  # of the first two latents
    mean, std = video_latent_statistics({"scaling_factor": 0.5, "shift_factor": 0.25}, 2)
    assert mean.tolist() == [[0.25, 0.25]] and std.tolist() == [[2, 2]]


def test_a_clip_that_does_not_fill_its_last_latent_is_refused():
    with pytest.raises(ValueError, match=r"video of 8 frames: 4 frames per latent need 1 \+ 4 k frames"):
        video_vae_tokenizer("wan").double().encode(clip()[:, :8])


@torch.no_grad()
@pytest.mark.parametrize("name", ["wan22", "cogvideox", "cosmos", "hunyuan15", "ltx"])
def test_folders_and_pipelines_of_diffusers_load(name, tmp_path):
    vae = video_vae(name)
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    own = VideoVAETokenizer.from_vae(vae, (32, 16))
    x = torch.cat((clip(), clip()), dim=3).float()
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
        loaded = load_tokenizer(folder, grid=own.grid)
        assert isinstance(loaded, VideoVAETokenizer) and loaded.image_size == (32, 16)
        assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
        torch.testing.assert_close(loaded.encode(x), own.encode(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="give image_size"):
        load_tokenizer(tmp_path / "pipeline")
    config = tmp_path / "pipeline" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 8, "z_dim": 8}))
    with pytest.raises(ComponentError, match=r"and config\.json describes"):
        load_tokenizer(tmp_path / "pipeline", image_size=(16, 16))


@torch.no_grad()
def test_a_world_over_a_video_autoencoder_steps_and_loads(tmp_path):
    tokenizer = video_vae_tokenizer("wan")
    dynamics = dit(grid=tokenizer.grid, channels=tokenizer.channels, frames_per_latent=4)
    world = DiTSimulator(tokenizer, dynamics, None, ActionSpace("discrete", 4), sampling=DiffusionSampling(steps=2))
    save_simulator(world, tmp_path / "bundle")
    loaded = vwm.load(tmp_path / "bundle", "cpu")
    steps = []
    for simulator in (world, loaded):
        state, _ = simulator.reset(video_to_uint8(clip(frames=5).float()))
        steps.append(simulator.step(state, torch.tensor([1, 2]))[1])
    assert steps[0].frames.shape[1] == 4
    torch.testing.assert_close(steps[0].latent, steps[1].latent)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "latent"),  # frames, pixels along a side, channels
    [
        ("AutoencoderKLWan", (4, 8, 16)),
        ("AutoencoderKLCogVideoX", (4, 8, 16)),
        ("AutoencoderKLCosmos", (8, 8, 16)),
        ("AutoencoderKLHunyuanVideo", (4, 8, 16)),
        ("AutoencoderKLHunyuanVideo15", (4, 16, 32)),
        ("AutoencoderKLLTXVideo", (8, 32, 128)),
    ],
)
def test_published_sizes(kind, latent):
    """The default settings of the classes are those of published weights."""
    with torch.device("meta"):
        tokenizer = VideoVAETokenizer((64, 64), kind, {}).to("meta")  # with constants of its modules
        frames, side, channels = latent
        latents = tokenizer.encode(torch.zeros(1, 1 + frames, 3, 64, 64))
        assert latents.shape == (1, 2, 64 // side, 64 // side, channels)
        assert tokenizer.decode(latents).shape == (1, 1 + frames, 3, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("name", ["wan22", "cogvideox", "cosmos", "hunyuan", "hunyuan15", "ltx095_causal"])
def test_streams_run_in_mixed_and_low_precision(name):
    tokenizer, x = video_vae_tokenizer(name), clip().float()
    expected = tokenizer.encode(x)

    def stream(x: Tensor) -> Tensor:
        encoder, decoder, latents = tokenizer.init_encoder(2), tokenizer.init_decoder(2), []
        for frame in x.split(1, dim=1):
            encoder, z = tokenizer.encode_step(encoder, frame)
            decoder, video = tokenizer.decode_step(decoder, z)
            assert video.isfinite().all() and video.shape[1] in (0, 1, tokenizer.time_compression)
            latents.append(z)
        return torch.cat(latents, dim=1)

    with torch.autocast("cpu", torch.bfloat16):
        mixed = stream(x)
    tokenizer.to(torch.bfloat16)
    low = stream(x.bfloat16())
    for latents in (mixed, low):  # rounding, with random weights
        assert (latents.float() - expected).square().mean() < 0.01 * expected.square().mean()


def test_constants_of_modules_have_values_where_a_network_has_none(monkeypatch):
    """Loading first builds a network on the meta device. Cosmos' module holds wavelets, which it then lacked."""

    class Modules:
        def __getattr__(self, name: str) -> Tensor:
            return torch.ones(1)  # as a module would on its import

    monkeypatch.setattr(network_base, "diffusers", Modules())
    with torch.device("meta"):
        assert network_base.find_diffusers_class("AutoencoderKLCosmos").device.type == "cpu"


def test_unknown_classes_are_named():
    with pytest.raises(ValueError, match="'VQModel' must be one of AutoencoderKLWan, "):
        VideoVAETokenizer((16, 16), "VQModel", {})
    with pytest.raises(ValueError, match="must divide image_size=17x16"):
        VideoVAETokenizer.from_vae(video_vae("wan"), (17, 16))
    assert set(VIDEO_VAES) == {kind for kind, _ in VIDEO_VAE_SETTINGS.values()}


def test_layers_of_a_network_keep_names_and_weights():
    vae = video_vae("cosmos")
    names = list(vae.state_dict())
    make_streaming(vae, tokenizer_module.find_adapter("AutoencoderKLCosmos").layers)
    assert list(vae.state_dict()) == names
