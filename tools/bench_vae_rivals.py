"""Benchmark our causal VAE against diffusers' video autoencoders: seconds per pass, and PSNR after equal training.

Equal on both sides: clips of 17 frames to 5 x 8 x 8 latents of 16 channels (at 64x64 pixels), parameters (8 to 10
million), float32, threads, and for the PSNR the clips and their order, the number of steps, AdamW, its schedule, the
clipping of gradients, the loss (squared error, and a KL term of the same weight where the posterior has a variance),
and the list of learning rates, of which the best is taken for each model. The passes of all models alternate. Weights
are random, because published ones were trained on different data.

    vwm record procgen:coinrun data/coinrun --frames 60000 --env_options '{num_levels: 500}'
    vwm record procgen:coinrun data/unseen --frames 4000 --env_options '{start_level: 100000}' --seed 1
    python tools/bench_vae_rivals.py --train data/coinrun --test data/unseen --steps 100 --threads 1
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float
from vwm.data.clip_folders import make_clip_dataset
from vwm.tokenizers.causal_vae import CausalVAE

KL_WEIGHT = 1e-4
FRAMES = 17
OURS: dict[str, Any] = {
    "latent_channels": 16,
    "time_compression": 4,
    "patch_size": 4,
    "widths": [128, 320],
    "depths": [2, 3],
    "kl_weight": KL_WEIGHT,
}
RIVALS: dict[str, dict[str, Any]] = {
    "AutoencoderKLCosmos": {
        "encoder_block_out_channels": (48, 96, 192),
        "decode_block_out_channels": (48, 96, 192, 192),
        "num_layers": 1,
        "latent_channels": 16,
        "temporal_compression_ratio": 4,
    },
    "AutoencoderKLWan": {
        "base_dim": 32,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 1,
        "latents_mean": [0.0] * 16,
        "latents_std": [1.0] * 16,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (32, 64, 128, 128),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "latent_channels": 16,
    },
    "AutoencoderKLHunyuanVideo": {
        "block_out_channels": (32, 64, 128, 128),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "latent_channels": 16,
    },
}


class Model(NamedTuple):
    """A network, and a function that applies it: float [b, t, 3, H, W] -> reconstruction and penalty."""

    network: nn.Module
    call: Callable[[Tensor], tuple[Tensor, Tensor]]


def ours(size: int) -> Model:
    network = CausalVAE(image_size=(size, size), **OURS)

    def call(video: Tensor) -> tuple[Tensor, Tensor]:
        out = network(video)
        return out.video, out.penalty

    return Model(network, call)


def rival(name: str) -> Model:
    network = getattr(diffusers, name)(**RIVALS[name])

    def call(video: Tensor) -> tuple[Tensor, Tensor]:
        posterior = network.encode(video.transpose(1, 2)).latent_dist
        penalty = video.new_zeros(())
        if hasattr(posterior, "logvar"):
            log_variance = posterior.logvar
            penalty = 0.5 * (posterior.mean.square() + log_variance.exp() - 1 - log_variance).mean()
        z = posterior.sample() if network.training else posterior.mode()
        return network.decode(z).sample.transpose(1, 2), KL_WEIGHT * penalty

    return Model(network, call)


def make(name: str, size: int) -> Model:
    torch.manual_seed(0)
    return ours(size) if name == "ours" else rival(name)


def speed(models: dict[str, Model], repeats: int, video: Tensor) -> dict[str, dict[str, float]]:
    """Return median seconds of a forward pass, and of forward and backward; the models alternate."""
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "forward_backward": []} for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                model.call(video)
            middle = time.perf_counter()
            model.network.zero_grad()
            out, penalty = model.call(video)
            (F.mse_loss(out, video) + penalty).backward()
            times[name]["forward"].append(middle - start)
            times[name]["forward_backward"].append(time.perf_counter() - middle)
    # The first round warms up.
    return {n: {kind: statistics.median(t[1:]) for kind, t in both.items()} for n, both in times.items()}


def psnr(model: Model, clips: list[Tensor]) -> float:
    """Compute the PSNR on clips that were not trained on; frames are clamped to the valid range."""
    model.network.eval()
    with torch.no_grad():
        error = sum(F.mse_loss(model.call(clip)[0].clamp(-1, 1), clip).item() for clip in clips) / len(clips)
    model.network.train()
    return 10 * math.log10(4 / error)


def train(model: Model, clips: list[Tensor], rate: float, warmup: int = 10) -> None:
    """Train with one step per clip, in order."""
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    steps = len(clips)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for clip in clips:
        out, penalty = model.call(clip)
        optimizer.zero_grad()
        (F.mse_loss(out, clip) + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def read(path: str, count: int, size: int) -> list[Tensor]:
    dataset = make_clip_dataset(path, FRAMES, fields=("frames",))
    clips = [frames_to_float(torch.from_numpy(dataset[(0, i)]["frames"].copy())[None]) for i in range(count)]
    if clips[0].shape[-2:] != (size, size):
        raise ValueError(f"{path} has frames of {list(clips[0].shape[-2:])}, --size is {size}")
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ours", *RIVALS], choices=["ours", *RIVALS])
    parser.add_argument("--repeats", type=int, default=5, help="of the timing; 0 leaves it out")
    parser.add_argument("--train", help="shards to train on; without it there is no PSNR")
    parser.add_argument("--test", help="shards to measure the PSNR on")
    parser.add_argument("--steps", type=int, default=50, help="of training, one clip each")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="learning rates to try")
    parser.add_argument("--test_clips", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="side of the frames")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("vae_rivals.json"))
    options = parser.parse_args()
    if bool(options.train) != bool(options.test):
        parser.error("--train and --test go together")
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "settings": {n: OURS if n == "ours" else RIVALS[n] for n in options.models},
    }
    models = {name: make(name, options.size) for name in options.models}
    report["parameters"] = {n: sum(p.numel() for p in m.network.parameters()) for n, m in models.items()}
    for name, settings in report["settings"].items():
        print(f"{name} ({report['parameters'][name] / 1e6:.2f}M): {settings}")
    if options.repeats:
        video = torch.rand(1, FRAMES, 3, options.size, options.size) * 2 - 1
        report["seconds"] = speed(models, options.repeats, video)
        print(f"\n{'seconds, ' + str(options.threads) + ' threads':28}{'forward':>10}{'with backward':>16}")
        for name, of in report["seconds"].items():
            print(f"{name:28}{of['forward']:10.3f}{of['forward_backward']:16.3f}", flush=True)
    del models
    if options.train:
        clips = read(options.train, options.steps, options.size)
        unseen = read(options.test, options.test_clips, options.size)
        report["psnr"] = {}
        print(f"\n{'PSNR by learning rate':28}" + "".join(f"{rate:>10g}" for rate in options.rates) + f"{'best':>10}")
        for name in options.models:
            found = {}
            for rate in options.rates:
                model = make(name, options.size)
                train(model, clips, rate)
                found[str(rate)] = psnr(model, unseen)
            report["psnr"][name] = found
            row = "".join(f"{value:10.2f}" for value in found.values())
            print(f"{name:28}{row}{max(found.values()):10.2f}", flush=True)
            options.out.write_text(json.dumps(report, indent=2))
    options.out.write_text(json.dumps(report, indent=2))
    print(f"\neverything: {options.out}")


if __name__ == "__main__":
    main()
