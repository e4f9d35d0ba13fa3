"""Compare the time of our tokenizers of video autoencoders with diffusers' own path: seconds of CPU time or of a GPU.

Networks of 8 to 16 million parameters with random weights, in float32. Timed in turns in one process: diffusers' encode
and decode of a whole clip, ours, and ours latent by latent as a world that is played decodes. Both sides run the same
modules, so that the difference is in how a clip is divided and in what is kept. A TAEHV decoder is timed with Wan.

    python tools/bench_video_vaes.py --size 64 --frames 17 --repeats 5
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from timing import medians, race, save
from torch import Tensor

from vwm.tokenizers.video_vae.stream import streaming
from vwm.tokenizers.video_vae.tiny_decoder import TinyDecoderConfig, TinyVideoDecoder
from vwm.tokenizers.video_vae.tokenizer import VideoVAETokenizer

WAN: dict[str, Any] = {"base_dim": 32, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Wan 2.1": ("AutoencoderKLWan", WAN),
    "Wan 2.2": (
        "AutoencoderKLWan",
        WAN
        | {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "z_dim": 48}
        | {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
    ),
    "CogVideoX": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 1, "norm_num_groups": 16},
    ),
    "Cosmos": (
        "AutoencoderKLCosmos",
        {"encoder_block_out_channels": (48, 96, 192), "decode_block_out_channels": (48, 96, 192, 192)}
        | {"num_layers": 1, "temporal_compression_ratio": 4, "latents_mean": None, "latents_std": None},
    ),
    "HunyuanVideo": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 1, "norm_num_groups": 16},
    ),
    "HunyuanVideo 1.5": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": (16, 32, 64, 128, 128), "layers_per_block": 1},
    ),
    "LTX-Video": (
        "AutoencoderKLLTXVideo",
        {"block_out_channels": (32, 64, 128, 128), "decoder_block_out_channels": (32, 64, 128, 128)}
        | {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames")
    parser.add_argument("--frames", type=int, default=17, help="1 + 8 k")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for all times")
    arguments = parser.parse_args()
    kind = "cpu" if arguments.device == "cpu" else "clock"
    print(f"median seconds ({kind}), {arguments.frames} frames of {arguments.size} x {arguments.size}")
    results = {}
    for name in NETWORKS:
        times = race(make_steps(name, arguments), arguments.repeats, arguments.device, warmup=1)
        results[name] = times
        listed = ", ".join(f"{step} {values[kind]:.3f}" for step, values in medians(times).items())
        print(f"{name}: {listed}", flush=True)
    save(arguments.json, {"settings": {k: str(v) for k, v in vars(arguments).items()}, "times": results})


@torch.no_grad()
def make_steps(name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The passes to time, by name."""
    torch.manual_seed(0)
    kind, settings = NETWORKS[name]
    vae = getattr(diffusers, kind)(**settings).eval().requires_grad_(False).to(arguments.device)
    tokenizer = VideoVAETokenizer.from_vae(vae, (arguments.size, arguments.size)).to(arguments.device)
    video = torch.rand(1, arguments.frames, 3, arguments.size, arguments.size, device=arguments.device) * 2 - 1
    latents, z = tokenizer.encode(video), vae.encode(video.transpose(1, 2)).latent_dist.mode()
    steps: dict[str, Callable[[], Any]] = {
        "encode diffusers": lambda: vae.encode(video.transpose(1, 2)),
        "ours": lambda: tokenizer.encode(video),
        "by latent": lambda: encode_by_latent(tokenizer, video),
        "decode diffusers": lambda: vae.decode(z),
        "ours ": lambda: tokenizer.decode(latents),
    }
    if tokenizer.adapter.decoder_is_causal(vae.config):
        steps["by latent "] = lambda: decode_by_latent(tokenizer, latents)
    if name == "Wan 2.1":
        tiny = TinyVideoDecoder(TinyDecoderConfig()).eval().requires_grad_(False).to(arguments.device)
        steps["TAEHV"] = lambda: decode_tiny(tiny, latents)
    return steps


def encode_by_latent(tokenizer: VideoVAETokenizer, video: Tensor) -> None:
    state = tokenizer.init_encoder(1)
    for part in (video[:, :1], *video[:, 1:].split(tokenizer.time_compression, dim=1)):
        state, _ = tokenizer.encode_step(state, part)


def decode_by_latent(tokenizer: VideoVAETokenizer, latents: Tensor) -> None:
    state = tokenizer.init_decoder(1)
    for part in latents.split(1, dim=1):
        state, _ = tokenizer.decode_step(state, part)


def decode_tiny(decoder: TinyVideoDecoder, latents: Tensor) -> None:
    with streaming(()) as stream:
        decoder(latents.permute(0, 1, 4, 2, 3), stream)


if __name__ == "__main__":
    with torch.no_grad():
        main()
