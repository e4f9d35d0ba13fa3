"""Small autoencoders in the layouts of diffusers, for frames of 16x16 pixels, with random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import diffusers
import torch
from factories import randomize
from safetensors.torch import save_file
from torch import nn

from vwm.tokenizers.rae_tokenizer import find_rae_class
from vwm.tokenizers.video_vae.tiny_decoder import TinyDecoderConfig, TinyVideoDecoder
from vwm.tokenizers.video_vae.tiny_tokenizer import TinyDecoderTokenizer
from vwm.tokenizers.video_vae.tokenizer import VideoVAETokenizer

COSMOS = {
    "encoder_block_out_channels": (8, 8, 8),
    "decode_block_out_channels": (8, 8, 8, 8),
    "num_layers": 1,
    "latent_channels": 2,
    "patch_size": 2,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
    "resolution": 16,
    "latents_mean": [0.1, -0.2, 0.3, 0.4],
    "latents_std": [0.5, 1.0, 2.0, 0.7],
}
LTX = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, False, False),
    "decoder_spatio_temporal_scaling": (True, True, False, False),
    "patch_size": 2,
}
WAN = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.4],
    "latents_std": [0.5, 1.0, 2.0, 0.7],
}

VIDEO_VAE_SETTINGS = {
    "wan": ("AutoencoderKLWan", WAN),
    "wan8": ("AutoencoderKLWan", WAN | {"dim_mult": [1, 1, 1, 1], "temperal_downsample": [False, True, True]}),
    "wan22": ("AutoencoderKLWan", WAN | {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    ),
    "cosmos": ("AutoencoderKLCosmos", COSMOS),
    "cosmos_plain_patches": (
        "AutoencoderKLCosmos",
        COSMOS | {"patch_type": "rearrange", "attention_resolutions": (8,)},
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        {"latent_channels": 4, "block_out_channels": (4, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan15": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": (8, 16, 16), "layers_per_block": 1}
        | {"spatial_compression_ratio": 4, "temporal_compression_ratio": 2},
    ),
    "ltx": ("AutoencoderKLLTXVideo", LTX),
    "ltx_causal": ("AutoencoderKLLTXVideo", LTX | {"decoder_causal": True}),
    "ltx095_causal": (
        "AutoencoderKLLTXVideo",
        LTX
        | {
            "block_out_channels": (8, 16, 16, 16),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
            "decoder_block_out_channels": (8, 16, 16),
            "layers_per_block": (1,) * 4,
            "decoder_layers_per_block": (1,) * 4,
            "spatio_temporal_scaling": (True, True, True),
            "decoder_spatio_temporal_scaling": (True, True, False),
            "decoder_inject_noise": (False,) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal"),
            "upsample_residual": (True, True, False),
            "upsample_factor": (2, 2, 1),
            "timestep_conditioning": True,
            "decoder_causal": True,
            "spatial_compression_ratio": 8,
            "temporal_compression_ratio": 4,
        },
    ),
}
"""Class and settings of each variant."""


def video_vae(name: str) -> nn.Module:
    """The network of diffusers; scales and shifts are random too, so that each of them has an effect."""
    torch.manual_seed(0)
    kind, settings = VIDEO_VAE_SETTINGS[name]
    vae = getattr(diffusers, kind)(**settings).eval().requires_grad_(False)
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)
    return vae


def video_vae_tokenizer(name: str) -> VideoVAETokenizer:
    return VideoVAETokenizer.from_vae(video_vae(name), image_size=(16, 16))


def tiny_decoder_file(file: Path, config: TinyDecoderConfig = TinyDecoderConfig(4, (8,) * 4)) -> Path:  # noqa: B008
    """A TAEHV file with random weights: a decoder, and an encoder of width 4."""
    torch.manual_seed(1)
    decoder = randomize(TinyVideoDecoder(config))
    nn.init.constant_(decoder.decoder[-1].bias, 0.5)
    weights = dict(decoder.state_dict())

    def add(name: str, *shape: int, bias: bool = True) -> None:
        weights[f"encoder.{name}.weight"] = torch.randn(shape)
        if bias:
            weights[f"encoder.{name}.bias"] = torch.randn(shape[0])

    add("0", 4, 3 * config.patch_size**2, 3, 3)
    for i in (2, 7, 12):
        add(f"{i}.conv", 4, 8 if i < 12 else 4, 1, 1, bias=False)
        add(f"{i + 1}", 4, 4, 3, 3, bias=False)
        for block in range(i + 2, i + 5):
            for layer, inputs in ((0, 8), (2, 4), (4, 4)):
                add(f"{block}.conv.{layer}", 4, inputs, 3, 3)
    add("17", config.latent_channels, 4, 3, 3)
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    return file


def tiny_decoder_tokenizer() -> TinyDecoderTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return TinyDecoderTokenizer.of(video_vae_tokenizer("wan8"), tiny_decoder_file(Path(folder) / "tae.safetensors"))


def rae_vae(**changes) -> nn.Module:
    """diffusers' AutoencoderRAE; statistics of its latents are random too."""
    torch.manual_seed(0)
    settings = {"encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1, "patch_size": 4}
    settings |= {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    settings |= {"decoder_intermediate_size": 32, "encoder_input_size": 16}
    settings |= {"latents_mean": torch.randn(64, 1, 1).tolist(), "latents_std": torch.rand(64, 1, 1).add(1).tolist()}
    return find_rae_class()(**(settings | changes)).eval().requires_grad_(False)
