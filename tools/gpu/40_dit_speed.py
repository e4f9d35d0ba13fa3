"""Measure the speed of a large diffusion world on one GPU: frames per second of play, and utilization in training.

    python tools/gpu/40_dit_speed.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/40_dit_speed.py OUT --tiny          the same in a minute without a GPU

The network and the objective are those of a config, with random weights. In addition to torch it requires only
diffusers, einops and timm. Each measurement is written to OUT/dit_speed.json at once. Those of the last call are kept,
and those for which there is no time are left to the next call.

Legend: b batch, t frames, n tokens a frame, d width.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vwm.core.blocks import find_blocks  # noqa: E402
from vwm.core.seeds import fold_in, world_seeds  # noqa: E402
from vwm.models.dit.network import DiT, NoisyFrames, select_clips  # noqa: E402
from vwm.models.dit.objectives import DiffusionObjective  # noqa: E402
from vwm.models.dit.sampling import (  # noqa: E402
    CONTEXT_SEED_STREAM,
    FRAME_SEED_STREAM,
    DiffusionSampling,
    finest_step_index,
    observe_latents,
    sample_latent_frame,
)
from vwm.nn.recomputation import recompute_blocks  # noqa: E402
from vwm.nn.space_time import TransformerState  # noqa: E402
from vwm.runs.config_files import load_config  # noqa: E402

PEAK = {"H100": 989e12, "H200": 989e12}
"""Dense bf16 operations per second according to NVIDIA."""
TINY = {"grid": [4, 4], "channels": 4, "width": 32, "depth": 4, "heads": 2, "window": 4}
RESERVE = 120
"""Seconds that a measurement may take, compilation included; none is started with less time left."""

Play = Callable[[Tensor], Tensor]
"""Actions to the latents of the next frame; it keeps the state."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/dit/oasis_600m.yaml")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps a frame")
    parser.add_argument("--batch", type=int, default=32, help="clips per training step, halved until they fit")
    parser.add_argument("--seconds", type=float, default=540, help="of this call")
    parser.add_argument("--tiny", action="store_true", help="a tiny network")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    settings = load_config(arguments.config)["model"]["init_args"]
    network = settings["dynamics"]["init_args"]
    if arguments.tiny:
        network |= TINY
        arguments.batch = 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    size = sum(p.numel() for p in build(network, torch.device("meta")).parameters())
    recipe = {"config": arguments.config.name, "network": network, "steps": arguments.steps}
    found = taken_over(arguments.before or arguments.out, recipe)
    found |= {"recipe": recipe, "parameters": size, "device": name, "torch": torch.__version__}
    print(f"{arguments.config.name}: {size / 1e6:.1f}M parameters, {name}, torch {torch.__version__}", flush=True)

    plan: dict[str, Callable[[], dict[str, Any]]] = {}
    for way in ("plain", "compiled", "compiled, CUDA graph"):
        if "graph" not in way or device.type == "cuda":
            plan[f"play, {way}"] = lambda way=way: time_play(network, device, DiffusionSampling(arguments.steps), way)  # type: ignore[misc]
    for way in ("plain", "compiled", "compiled, recomputed"):
        plan[f"train, {way}"] = lambda way=way: time_training(settings, device, arguments.batch, way)  # type: ignore[misc]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for measurement, make in plan.items():
        if measurement in found["measurements"]:
            continue
        if ends - time.monotonic() < (10 if arguments.tiny else RESERVE):
            print(f"no time left for {measurement!r}: give the next call this folder")
            break
        began = time.monotonic()
        found["measurements"][measurement] = make()
        print(f"{measurement}: {time.monotonic() - began:.0f} s", flush=True)
        save(arguments.out, found)
    save(arguments.out, found)
    print_tables(found["measurements"])


def build(settings: dict[str, Any], device: torch.device) -> DiT:
    """Build the network with random weights, also where it is initialized to zero, so that all branches contribute."""
    torch.manual_seed(0)
    with device:
        network = DiT(**settings)
        with torch.no_grad():
            for weight in network.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.02)
    return network


def taken_over(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of the last call if its settings are equal."""
    file = folder / "dit_speed.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found if found.get("recipe") == recipe else {"measurements": {}}


def save(folder: Path, found: dict[str, Any]) -> None:
    aside = folder / "dit_speed.json.tmp"
    aside.write_text(json.dumps(found, indent=1))
    aside.rename(folder / "dit_speed.json")


def compile_blocks(network: DiT) -> None:
    """Compile as ``vwm fit --compile`` does; without a GPU only trace, which requires no compiler."""
    for block in find_blocks(network):
        block.compile(backend="inductor" if network.device.type == "cuda" else "eager")


def release(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gigabytes(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def seconds(work: Callable[[], object], device: torch.device, count: int) -> float:
    """Return the seconds of one call, the median of three rounds of ``count``."""
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(count):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - began) / count)
    return statistics.median(rounds)


# --------------------------------------------------------------------------------------------------- play


@torch.inference_mode()
def time_play(settings: dict[str, Any], device: torch.device, sampling: DiffusionSampling, way: str) -> dict[str, Any]:
    """Time one world in bfloat16: a frame takes its sampling steps, and one pass that adds it to the cache."""
    release(device)
    network = build(settings, device).eval()
    nn.Module.to(network, torch.bfloat16)  # diffusers' own advises to load it so instead
    action = _action(network, device)
    player = play_frame(network, sampling)
    truth = [player(action).float() for _ in range(3)]
    if "compiled" in way:
        compile_blocks(network)
    play = capture(network, sampling, action) if "graph" in way else play_frame(network, sampling)
    error = max(float((play(action).float() - frame).abs().max()) for frame in truth)
    for _ in range(3):
        play(action)
    each = seconds(lambda: play(action), device, 3 if device.type == "cpu" else 30)
    return {"ms": 1e3 * each, "fps": 1 / each, "differs_from_plain_by": error, "gigabytes": gigabytes(device)}


def _action(network: DiT, device: torch.device) -> Tensor | None:
    if network.embed_action is None:
        return None
    space = network.embed_action.space
    return torch.zeros(1, 1, *space.shape, dtype=space.dtype, device=device)


def _next_frame(
    network: DiT, sampling: DiffusionSampling, state: TransformerState, action: Tensor | None, seed: Tensor
) -> tuple[TransformerState, Tensor]:
    """Compute the dynamics' part of ``DiTSimulator.step``."""
    lead = network.embed_previous_actions(None, 1, 1) if action is None else network.embed_actions(action)
    latents = sample_latent_frame(
        network, state, lead, fold_in(fold_in(seed, FRAME_SEED_STREAM), state.position), sampling
    )
    state, _ = observe_latents(
        network, state, latents, lead, fold_in(seed, CONTEXT_SEED_STREAM), sampling.context_noise
    )
    return state, latents


def play_frame(network: DiT, sampling: DiffusionSampling) -> Play:
    """Return a function that plays a world from its first frame."""
    state, seed = network.init_state(1), world_seeds(0, 1, network.device)

    def play(action: Tensor | None) -> Tensor:
        nonlocal state
        state, latents = _next_frame(network, sampling, state, action, seed)
        return latents

    return play


def capture(network: DiT, sampling: DiffusionSampling, action: Tensor | None) -> Play:
    """Capture the same in one CUDA graph: its state stays in the same memory, and each replay is a frame."""
    state, seed = network.init_state(1), world_seeds(0, 1, network.device)
    # Layers share their empty memory at the start; in the graph each needs its own.
    leaves = [leaf.clone() for leaf in tree_leaves(state)]
    state = TransformerState(leaves[0], tuple(map(type(state.blocks[0]), leaves[1::2], leaves[2::2])))
    held = None if action is None else action.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and picks the kernels
            _next_frame(network, sampling, state, held, seed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        after, latents = _next_frame(network, sampling, state, held, seed)
        for here, new in zip(tree_leaves(state), tree_leaves(after), strict=True):
            here.copy_(new)

    def play(action: Tensor | None) -> Tensor:
        if held is not None:
            held.copy_(action)
        graph.replay()
        return latents.clone()

    return play


# --------------------------------------------------------------------------------------------------- training


def time_training(settings: dict[str, Any], device: torch.device, batch: int, way: str) -> dict[str, Any]:
    """Time training steps of whole windows in bf16, including AdamW, with the largest batch that fits in memory."""
    while True:
        release(device)
        try:
            return {"batch": batch} | _train(settings, device, batch, way)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                return {"batch": 0, "note": "a single clip does not fit"}
        batch //= 2


def _train(settings: dict[str, Any], device: torch.device, batch: int, way: str) -> dict[str, Any]:
    network = build(settings["dynamics"]["init_args"], device).train()
    recompute_blocks(network, "full" if "recomputed" in way else "none")
    if "compiled" in way:
        compile_blocks(network)
    objective, clean_past = _objective(settings), settings["context"] == "clean"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=device.type == "cuda")
    frames = network.transformer.span.window
    clean = torch.randn(batch, frames, *network.grid, network.channels, device=device)
    action = _action(network, device)
    actions = None if action is None else action.expand(batch, frames - 1, *action.shape[2:])

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            lead, past = network.embed_previous_actions(actions, batch, frames), None
            if clean_past:
                signal = clean.new_ones(clean.shape[:2])
                past = of_frames(NoisyFrames(clean, signal, finest_step_index(network, signal), lead), slice(None, -1))

            def predict(x: Tensor, signal: Tensor, step: Tensor | None, clips: slice) -> Tensor:
                noisy = NoisyFrames(x, signal, step, lead[clips, int(clean_past) :])
                return network(noisy, None if past is None else select_clips(past, clips)).prediction

            loss, _ = objective.loss(predict, clean[:, int(clean_past) :])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    each = seconds(step, device, 1 if device.type == "cpu" else 8)
    tokens = batch * frames * len(network.places)
    work = operations(network, batch, frames, clean_past, objective)
    peak = next((p for part, p in PEAK.items() if device.type == "cuda" and part in torch.cuda.get_device_name()), None)
    return {
        "ms": 1e3 * each,
        "clips_per_second": batch / each,
        "tokens_per_second": tokens / each,
        "teraflops": work / each / 1e12,
        "mfu": None if peak is None else work / each / peak,
        "mfu_of_6_n": None if peak is None else 6 * sum(p.numel() for p in network.parameters()) * tokens / each / peak,
        "gigabytes": gigabytes(device),
    }


def _objective(settings: dict[str, Any]) -> DiffusionObjective:
    room, _, kind = settings["objective"]["class_path"].rpartition(".")
    made: DiffusionObjective = getattr(importlib.import_module(room), kind)(**settings["objective"]["init_args"])
    return made


def of_frames(noisy: NoisyFrames, frames: slice) -> NoisyFrames:
    return NoisyFrames(*(None if x is None else x[:, frames] for x in noisy))  # type: ignore[arg-type]


def operations(network: DiT, batch: int, frames: int, clean_past: bool, objective: DiffusionObjective) -> float:
    """Count useful floating point operations of a training step, without recomputation.

    A third of the weights (those that make each layer's shifts, scales and gates) meets a vector a frame, not every
    token; 6 x weights x tokens would count them n times. Of attention, the pairs that the mask lets through count.
    """
    tokens, width, transformer = len(network.places), network.config.width, network.transformer
    by_frame = ("modulation", "embed_signal", "embed_action")
    weights = {True: 0, False: 0}
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear):
            weights[any(word in name for word in by_frame)] += part.weight.numel()
    numbers = torch.arange(frames)
    pairs = int(transformer.span.attends(numbers, numbers).sum()) if transformer.causal else frames**2
    total = frames
    if clean_past:
        total, pairs = 2 * (frames - 1), 2 * pairs
    attention = 0
    for kind in transformer.attention_kinds:
        met = {"space": total * tokens**2, "time": pairs * tokens, "full": pairs * tokens**2}[kind]
        attention += 4 * met * width
    forward = batch * (2 * total * (tokens * weights[False] + weights[True]) + attention)
    # Larger steps of shortcut forcing call the network two more times, forward only.
    return forward * (3 + 2 * float(getattr(objective, "bootstrap", 0)))


# --------------------------------------------------------------------------------------------------- tables


def print_tables(measurements: dict[str, dict[str, Any]]) -> None:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    print("\n| play, bfloat16, one world | ms a frame | frames a second | differs from plain by | GB |")
    print("| --- | --- | --- | --- | --- |")
    for name, m in measurements.items():
        if name.startswith("play"):
            print(
                f"| {name[6:]} | {m['ms']:.1f} | {m['fps']:.1f} | {m['differs_from_plain_by']:.1e} "
                f"| {number(m['gigabytes'], '.1f')} |"
            )
    print("\n| train, bf16 autocast | batch | ms a step | tokens/s | TFLOP/s | MFU | MFU as 6 N tokens | GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, m in measurements.items():
        if name.startswith("train") and m["batch"]:
            print(
                f"| {name[7:]} | {m['batch']} | {m['ms']:.1f} | {m['tokens_per_second']:,.0f} | {m['teraflops']:.3g} "
                f"| {number(m['mfu'], '.1%')} | {number(m['mfu_of_6_n'], '.1%')} | {number(m['gigabytes'], '.1f')} |"
            )


if __name__ == "__main__":
    main()
