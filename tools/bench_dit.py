"""Benchmark the DiT: training compared with diffusers' Latte, and playing from the cache with recomputing the window.

    python tools/bench_dit.py train --threads 1
    python tools/bench_dit.py play --context 16 --sampling-steps 4
    python tools/bench_dit.py play --bundle bundles/carracing

The implementations alternate in one process; medians and spreads are printed with all settings of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from vwm.core.seeds import fold_in, seeded_normal
from vwm.models.dit.network import DiT, NoisyFrames
from vwm.models.dit.noise_schedule import add_noise, sampler_step, sampling_signal_levels
from vwm.models.dit.sampling import (
    DiffusionSampling,
    check_diffusion_sampling,
    finest_step_index,
    observe_latents,
    sample_latent_frame,
)
from vwm.worlds.bundle import load_simulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="forward and backward, compared with LatteTransformer3DModel")
    play = commands.add_parser("play", help="a frame from the cache, compared with the whole window (as in Oasis)")
    for command in (train, play):
        command.add_argument("--threads", type=int, default=1, help="of the CPU")
        command.add_argument("--repeats", type=int, default=7, help="rounds in which the two take turns")
        command.add_argument("--device", default="cpu", help="cpu, cuda, ...")
        command.add_argument("--bfloat16", action="store_true", help="autocast (train) or weights (play) in bfloat16")
    play.add_argument("--bundle", type=Path, help="a trained world; by default the small size with random weights")
    play.add_argument(
        "--context", type=int, default=16, help="attended frames, including the new one; by default the bundle's"
    )
    play.add_argument("--sampling-steps", type=int, help="by default the bundle's, or 4")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, "
        f"{'bfloat16' if options.bfloat16 else 'float32'}, medians of {options.repeats} interleaved repeats"
    )
    (bench_train if options.command == "train" else bench_play)(options)


# ---------------------------------------------------------------------------------------------------- training


def bench_train(options: argparse.Namespace) -> None:
    """Time one clip of 16 latent frames of 16x16x16 with patches of 2x2: 1024 tokens."""
    from diffusers import LatteTransformer3DModel

    latents = torch.randn(1, 16, 16, 16, 16, device=options.device)
    latte = LatteTransformer3DModel(
        in_channels=16, out_channels=16, sample_size=16, num_attention_heads=6, attention_head_dim=64, num_layers=6,
        patch_size=2, caption_channels=384, cross_attention_dim=384, activation_fn="gelu-approximate",
        norm_type="ada_norm_single", attention_bias=True, norm_elementwise_affine=False, norm_eps=1e-6, video_length=16,
    ).to(options.device)  # fmt: skip
    ours = DiT(
        grid=(16, 16),
        channels=16,
        patch_size=2,
        num_actions=15,
        width=392,
        depth=10,
        heads=7,
        kv_heads=1,
        window=16,
        registers=0,
    ).to(options.device)
    level, actions = torch.full((1, 16), 0.5), torch.zeros(1, 15, dtype=torch.int64)
    level, actions = level.to(options.device), actions.to(options.device)
    caption = torch.randn(1, 16, 384, device=options.device)
    channels_first = latents.permute(0, 4, 1, 2, 3).contiguous()

    def latte_forward() -> Tensor:
        return latte(
            channels_first, timestep=torch.tensor([500.0], device=options.device), encoder_hidden_states=caption
        ).sample

    def our_forward() -> Tensor:
        return ours(NoisyFrames(latents, level, None, ours.embed_previous_actions(actions, 1, 16))).prediction

    runs: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "diffusers Latte": (latte, latte_forward),
        "vwm DiT": (ours, our_forward),
    }
    for name, (network, _) in runs.items():
        print(f"{name:18} {sum(p.numel() for p in network.parameters()) / 1e6:.1f}M parameters, 1024 tokens")
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "forward+backward": []} for name in runs}
    for repeat in range(options.repeats + 1):
        for name, (network, forward) in runs.items():
            for kind in ("forward", "forward+backward"):
                seconds = _timed(lambda f=forward, k=kind: _run(f, k, options), options.device)
                network.zero_grad()
                if repeat:  # the first is warm-up
                    times[name][kind].append(seconds)
    for kind in ("forward", "forward+backward"):
        for name in runs:
            print(f"{kind:18} {name:18} {_spread(times[name][kind])}")
        a, b = (statistics.median(times[name][kind]) for name in runs)
        print(f"{kind:18} vwm is {a / b:.2f} times as fast per token")


def _run(forward: Callable[[], Tensor], kind: str, options: argparse.Namespace) -> None:
    with (
        torch.set_grad_enabled(kind != "forward"),
        torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.bfloat16),
    ):
        out = forward()
    if kind != "forward":
        out.float().square().mean().backward()


# ---------------------------------------------------------------------------------------------------- playing


@torch.inference_mode()
def bench_play(options: argparse.Namespace) -> None:
    """Time the dynamics alone: the tokenizer costs the same in both cases."""
    if options.bundle is not None:
        simulator = load_simulator(options.bundle, options.device)
        dynamics, sampling = simulator.dynamics, simulator.sampling._replace(guidance=1.0)
        context = dynamics.transformer.span.window
    else:
        context, sampling = options.context, DiffusionSampling(steps=4)
        dynamics = DiT(
            grid=(8, 8), channels=16, num_actions=15, prediction="clean", num_step_sizes=7, width=192, depth=8, heads=6,
            window=context,
        )  # fmt: skip
        for p in dynamics.parameters():
            torch.nn.init.normal_(p, std=0.05)
    dynamics = dynamics.eval().to(options.device)
    if options.bfloat16:
        dynamics = torch.nn.Module.to(dynamics, torch.bfloat16)
    if options.sampling_steps is not None:
        sampling = sampling._replace(steps=options.sampling_steps)
    check_diffusion_sampling(dynamics, sampling)
    print(
        f"{sum(p.numel() for p in dynamics.parameters()) / 1e6:.1f}M parameters, latents {dynamics.grid} x "
        f"{dynamics.channels}, context {context}, {sampling.steps} sampling steps"
    )
    seed = torch.zeros(1, dtype=torch.int64, device=options.device)
    frames = torch.randn(1, context - 1, *dynamics.grid, dynamics.channels, device=options.device)
    embedded = _embed_actions(dynamics, context, options.device)
    state, _ = observe_latents(dynamics, dynamics.init_state(1), frames, embedded[:, :-1], seed, sampling.context_noise)

    def cached() -> Tensor:
        frame = sample_latent_frame(dynamics, state, embedded[:, -1:], seed, sampling)
        observe_latents(dynamics, state, frame, embedded[:, -1:], seed, sampling.context_noise)
        return frame

    def recomputed() -> Tensor:
        return sample_from_whole_window(dynamics, frames, embedded, seed, sampling)

    difference = float((cached() - recomputed()).abs().max() / recomputed().std())
    if difference > (0.3 if options.bfloat16 else 1e-3):
        raise RuntimeError(f"the frame from the cache and the recomputed one differ by {difference:.0e}")
    print(f"the two frames differ by at most {difference:.0e} of their deviation")
    times: dict[str, list[float]] = {"from the cache": [], "whole window": []}
    for _ in range(options.repeats):
        times["from the cache"].append(_timed(cached, options.device))
        times["whole window"].append(_timed(recomputed, options.device))
    for name, seconds in times.items():
        print(f"{name:18} {_spread(seconds)}")
    print(f"the cache makes a frame {statistics.median(times['whole window']) / statistics.median(times['from the cache']):.1f} times as fast")  # fmt: skip  # noqa: E501


def sample_from_whole_window(
    dynamics: DiT, frames: Tensor, embedded: Tensor, seed: Tensor, sampling: DiffusionSampling
) -> Tensor:
    """Sample a frame without a cache: every sampling step processes all frames of the window."""
    numbers = torch.arange(frames.shape[1], device=frames.device)
    each = fold_in(seed[:, None], numbers).flatten()
    noise = seeded_normal(each, *frames.shape[2:]).unflatten(0, (1, -1))
    signal = frames.new_full(frames.shape[:2], 1 - sampling.context_noise)
    past = add_noise(dynamics.prediction, frames, noise, signal)
    x, steps = seeded_normal(seed, 1, *frames.shape[2:]), None
    for here, onward in pairwise(sampling_signal_levels(sampling.steps, sampling.shift)):
        now = x.new_full((1, 1), here)
        if dynamics.num_step_sizes:
            halvings = torch.full((1, 1), (sampling.steps - 1).bit_length(), device=x.device)
            steps = torch.cat((finest_step_index(dynamics, signal), halvings), dim=1)  # type: ignore[arg-type]
        window = NoisyFrames(torch.cat((past, x), dim=1), torch.cat((signal, now), dim=1), steps, embedded)
        said = dynamics(window).prediction[:, -1:]
        x = sampler_step(dynamics.prediction, x, said, now, x.new_full((1, 1), onward))
    return x


def _embed_actions(dynamics: DiT, frames: int, device: str) -> Tensor:
    embedding = dynamics.embed_action
    if embedding is None:
        return dynamics.embed_previous_actions(None, 1, frames)
    actions = torch.zeros(1, frames - 1, *embedding.space.shape, dtype=embedding.space.dtype, device=device)
    return dynamics.embed_previous_actions(actions, 1, frames)


def _timed(run: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> str:
    ms = sorted(s * 1e3 for s in seconds)
    return f"{statistics.median(ms):8.1f} ms (from {ms[0]:.1f} to {ms[-1]:.1f})"


if __name__ == "__main__":
    main()
