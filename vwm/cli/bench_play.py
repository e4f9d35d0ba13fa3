"""``vwm bench play``: how fast this machine plays a bundle.

It prints every setting next to the figures, alternates between the variants, and gives medians with their spread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vwm.cli.bench_timing import format_timings, limit_threads, measure_seconds
from vwm.core.capabilities import DecodesLatents
from vwm.core.command_output import format_command, print_next_command, progress_bar
from vwm.core.devices import Precision, resolve_device, resolve_precision
from vwm.core.family import CacheComparison
from vwm.core.network_simulator import NetworkSimulator
from vwm.core.seeds import fold_in
from vwm.worlds.bundle import load_simulator
from vwm.worlds.families import find_family


def benchmark_play(
    bundle: Path,
    steps: int = 40,
    batch: int = 1,
    sampling_steps: int | None = None,
    threads: int | None = None,
    repeats: int = 5,
    device: str = "auto",
    precision: Precision = "auto",
    accelerate: Literal["auto", "none"] = "auto",
) -> None:
    """Time a frame of play; with Genie also without its cache.

    Without the cache, every MaskGIT step computes the same frames with the same weights from the whole window, by the
    path that training uses, and the window is decoded; that both agree is checked first. How far the frames are from
    those that plain float32 gives is measured as well.

    Args:
        bundle: the bundle to play.
        steps: steps per repeat (without the cache a fifth of them); a step shows one frame, or those of a latent.
        batch: simulations played at once.
        sampling_steps: sampling steps per frame; by default the bundle's.
        threads: CPU threads; by default torch's choice.
        repeats: rounds in which the variants alternate.
        device: where to compute; see ``resolve_device``.
        precision: of the dynamics; auto uses bfloat16 where the machine multiplies it natively, as play does.
        accelerate: auto captures steps as CUDA graphs on a GPU; none computes every step plainly.
    """
    with limit_threads(threads):
        dtype = resolve_precision(precision, resolve_device(device), bfloat16_on_cpu=True)
        simulator = _load(bundle, device, dtype, accelerate, sampling_steps)
        family = find_family(simulator)
        window = family.window(simulator)
        context = benchmark_context(simulator, batch)

        def actions(number: int) -> Tensor:
            return benchmark_actions(simulator, batch, number)

        _print_play_settings(simulator, context, window)
        if dtype != torch.float32 or simulator.captured_steps is not None:
            reference = _load(bundle, device, torch.float32, "none", sampling_steps)
            print(f"difference         {describe_difference(simulator, reference, context, actions)}")
        comparison = family.compare_cache(simulator, context, actions)
        if comparison is None:
            _print_step_times(simulator, _time_steps(simulator, context, actions, window, steps * repeats))
        else:
            _print_cache_times(simulator, comparison, steps * repeats, batch)
    plays = simulator.spec.observation.is_image
    print_next_command(format_command("play", bundle) if plays else format_command("eval", bundle, "DATA"))


def _print_step_times(simulator: NetworkSimulator, seconds_per_step: list[float]) -> None:
    frames = simulator.spec.frames_per_step
    included = "" if simulator.spec.observation.is_latent else ", decode included"
    name = "a step" if frames == 1 else f"a step / {frames} frames"
    times = format_timings([step / frames for step in seconds_per_step], 1e3, "ms a frame")
    print(f"{name:18} {times}{included}")


def _print_cache_times(simulator: NetworkSimulator, comparison: CacheComparison, steps: int, batch: int) -> None:
    print(f"agreement          {comparison.check_agreement()}")
    times = _time_cache(comparison, steps, simulator.device)
    for name, seconds in times.items():
        print(f"{name:18} {format_timings(seconds, 1e3, 'ms a frame')}")
    gain = float(np.median(times["without the cache"]) / np.median(times["with the cache"]))
    print(
        f"the cache makes a frame {gain:.1f} times as fast; {batch / np.median(times['with the cache']):.1f} "
        f"frames a second, recorded at {simulator.spec.fps:g}"
    )


def _load(
    bundle: Path, device: str, dtype: torch.dtype, accelerate: Literal["auto", "none"], sampling_steps: int | None
) -> NetworkSimulator:
    simulator = load_simulator(bundle, device, dtype, accelerate)
    return simulator if sampling_steps is None else simulator.with_sampling(steps=sampling_steps)


@torch.inference_mode()
def describe_difference(
    simulator: NetworkSimulator,
    reference: NetworkSimulator,
    context: Tensor,
    actions: Callable[[int], Tensor],
    steps: int = 16,
) -> str:
    """Say how far a simulator's steps are from those of a reference, of the same context, actions and seeds.

    The mean absolute difference of the levels of pixels, or of latents where there are no frames. The worlds are played
    on, each from its own last state, so that small differences grow as they do in play.
    """
    worlds, found = {"ours": simulator, "reference": reference}, []
    states = {name: world.reset(context)[0] for name, world in worlds.items()}
    for number in range(steps):
        shown = {}
        for name, world in worlds.items():
            states[name], output = world.step(states[name], actions(number))
            shown[name] = (output.latent if output.frame is None else output.frame).double()
        found.append(float((shown["ours"] - shown["reference"]).abs().mean()))
    unit = "" if simulator.spec.observation.is_latent else " of 255"
    return f"from plain float32: {found[0]:.3g}{unit} after one step, {found[-1]:.3g} after {steps}"


def _print_play_settings(simulator: NetworkSimulator, context: Tensor, window: int) -> None:
    networks = simulator.networks()
    sizes = ", ".join(f"{n} {sum(p.numel() for p in m.parameters()):,}" for n, m in networks.items())
    settings = simulator.sampling._asdict()
    sampling = ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "no sampling settings"
    print(f"world              {simulator.spec.title} ({find_family(simulator).title}); parameters: {sizes}")
    print(
        f"settings           {_describe_context(simulator)}, {_describe_latents(simulator, context)} a frame, "
        f"a window of {window} frames, {sampling}, batch {len(context)}"
    )
    stepping = "plain steps" if simulator.captured_steps is None else "captured steps"
    print(
        f"machine            {simulator.device}, {simulator.dtype}, {stepping}, {torch.get_num_threads()} "
        f"threads of {os.cpu_count()} cores, torch {torch.__version__}"
    )


def _describe_context(simulator: NetworkSimulator) -> str:
    shape = simulator.spec.context.shape
    return f"{shape[0]} numbers" if simulator.spec.context.is_vector else f"{shape[0]}x{shape[1]} pixels"


@torch.inference_mode()
def _describe_latents(simulator: NetworkSimulator, context: Tensor) -> str:
    latent = simulator.latent(simulator.reset(context)[0])[0]
    if not latent.is_floating_point():
        codes = f" of {simulator.codebook_size} codes" if isinstance(simulator, DecodesLatents) else ""
        return f"{latent.numel()} tokens{codes}"
    width = latent.shape[-1]
    return f"{latent.numel() // width} latents of {width} numbers"


@torch.inference_mode()
def _time_steps(
    simulator: NetworkSimulator, context: Tensor, actions: Callable[[int], Tensor], window: int, steps: int
) -> list[float]:
    """Time steps in seconds, once the window is full."""
    state, _ = simulator.reset(context)
    times: list[float] = []
    for number in progress_bar(range(window + steps), desc="time steps", unit="step"):
        with measure_seconds(times, simulator.device):
            state, _ = simulator.step(state, actions(number))
    return times[window:]


def _time_cache(comparison: CacheComparison, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Time frames with and without a cache in turns, in seconds; the decoder is timed by a separate call."""
    times: dict[str, list[float]] = {"with the cache": [], "- of it decoding": [], "without the cache": []}
    for number in progress_bar(range(steps), desc="time steps", unit="step"):
        with measure_seconds(times["with the cache"], device):
            comparison.step(number)
        with measure_seconds(times["- of it decoding"], device):
            comparison.decode()
        if number % 5 == 0:
            with measure_seconds(times["without the cache"], device):
                comparison.step_uncached(number)
    return times


def benchmark_context(simulator: NetworkSimulator, batch: int) -> Tensor:
    """Return one observation for each simulation to start from, of the bundle's starts or noise: [b, 1, ...]."""
    starts, space = simulator.starts, simulator.spec.context
    if starts is None:
        noise = torch.rand(1, 1, *space.shape, generator=torch.Generator().manual_seed(0))
        starts = noise if space.is_vector else (noise * 256).to(space.dtype)
    return starts[torch.arange(batch) % len(starts)][:, :1]


def benchmark_actions(simulator: NetworkSimulator, batch: int, number: int) -> Tensor:
    """Return actions that differ from frame to frame, int64 [b] or float [b, size]."""
    seed, space = fold_in(torch.arange(batch, device=simulator.device), number), simulator.spec.actions
    if space.is_discrete:
        return seed.remainder(space.size)
    places = torch.arange(space.size, device=simulator.device)
    return space.from_flat(torch.sin(seed[:, None].remainder(1000).float() + places))
