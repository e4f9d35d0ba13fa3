"""Time one step of play, ours and tinyworlds', in one run on this machine.

Equal on both sides: frame size, tokens per frame, codebook size, frames of context, MaskGIT steps, one world, decode
included, random weights (which do not affect the time). Everything else is each side's own default:
tinyworlds' models as its configs/*.yaml set them, ours as the small preset. The repeats of the two sides alternate.

    git clone https://github.com/AlmondGod/tinyworlds /tmp/rivals/tinyworlds
    python tools/bench_play_rivals.py --tinyworlds /tmp/rivals/tinyworlds --threads 2
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vwm.core.spaces import ActionSpace
from vwm.models.genie.dynamics import MaskGITDynamics
from vwm.models.genie.sampling import MaskGITSampling
from vwm.models.genie.simulator import GenieSimulator
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer

RIVAL_STEPS = 10
"""MaskGIT steps per frame, as tinyworlds' script passes them; none of its configs sets another number."""

Play = Callable[[], Any]


def main() -> None:
    """Build both sides, warm them up, time them alternately, print settings and medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tinyworlds", type=Path, required=True, help="a checkout of AlmondGod/tinyworlds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, help="frames of context (default: tinyworlds' inference config)")
    parser.add_argument("--bfloat16", action="store_true", help="also time our dynamics in bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="frames per repeat of ours (tinyworlds plays a quarter)")
    parser.add_argument("--width", type=int, default=192, help="of our dynamics")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    configs = _configs(options.tinyworlds)
    context = options.context or configs["inference"]["context_window"]
    sides = {"tinyworlds": _tinyworlds(options.tinyworlds, configs, context)}
    dtypes = [torch.float32] + [torch.bfloat16] * options.bfloat16
    for dtype in dtypes:
        model = options.width, options.depth, options.heads
        sides[f"vwm {str(dtype).removeprefix('torch.')}"] = _vwm(configs, context, *model, dtype)
    shared = configs["training"]
    print(
        f"frames {shared['frame_size']}x{shared['frame_size']}, {(shared['frame_size'] // shared['patch_size']) ** 2} "
        f"tokens per frame, {shared['num_bins'] ** shared['latent_dim']} codes, {context} frames of context, "
        f"{RIVAL_STEPS} MaskGIT steps, batch 1, {options.threads} threads, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, random weights"
    )
    times: dict[str, list[float]] = {}
    for name, (play, sizes) in sides.items():
        print(f"{name}: parameters " + ", ".join(f"{part} {size:,}" for part, size in sizes.items()))
        play()  # warm-up
        times[name] = []
    for _ in range(options.repeats):
        for name, (play, _) in sides.items():
            frames = options.steps if name != "tinyworlds" else max(1, options.steps // 4)
            times[name] += [_seconds(play) for _ in range(frames)]
    rival = statistics.median(times["tinyworlds"])
    for name, seconds in times.items():
        low, high = np.percentile(seconds, (5, 95)) * 1e3
        median = statistics.median(seconds)
        print(
            f"{name}: median {median * 1e3:.1f} ms per frame (p5-p95 {low:.1f}-{high:.1f}, {len(seconds)} frames), "
            f"{rival / median:.1f} x tinyworlds"
        )


def _configs(checkout: Path) -> dict[str, dict[str, Any]]:
    names = ("training", "video_tokenizer", "latent_actions", "dynamics", "inference")
    return {name: yaml.safe_load((checkout / "configs" / f"{name}.yaml").read_text()) for name in names}


def _tinyworlds(checkout: Path, configs: dict[str, dict[str, Any]], context: int) -> tuple[Play, dict[str, int]]:
    """Return tinyworlds' play step, as in its script: tokenize, look up, sample, detokenize, shift the window."""
    sys.path.insert(0, str(checkout))
    from models.dynamics import DynamicsModel  # type: ignore[import-not-found]
    from models.latent_actions import LatentActionModel  # type: ignore[import-not-found]
    from models.video_tokenizer import VideoTokenizer  # type: ignore[import-not-found]

    shared = configs["training"]
    size = (shared["frame_size"],) * 2

    def of(name: str) -> dict[str, Any]:
        return {key: configs[name][key] for key in ("embed_dim", "num_heads", "hidden_dim", "num_blocks")}

    quantizer = {"latent_dim": shared["latent_dim"], "num_bins": shared["num_bins"]}
    actions = shared["n_actions"]
    tokenizer = VideoTokenizer(size, shared["patch_size"], **of("video_tokenizer"), **quantizer).eval()
    latent_action = LatentActionModel(size, actions, shared["patch_size"], **of("latent_actions")).eval()
    width = int(math.log2(actions))
    dynamics = DynamicsModel(
        size, shared["patch_size"], **of("dynamics"), **quantizer, n_actions=actions, conditioning_dim=width
    ).eval()
    frames = [torch.rand(1, context, 3, *size) * 2 - 1]
    pressed = torch.zeros(1, context, dtype=torch.int64)

    @torch.inference_mode()
    def play() -> torch.Tensor:
        latents = tokenizer.quantizer.get_latents_from_indices(tokenizer.tokenize(frames[0]))
        drawn = dynamics.forward_inference(
            context_latents=latents,
            prediction_horizon=1,
            num_steps=RIVAL_STEPS,
            index_to_latents_fn=lambda index: tokenizer.quantizer.get_latents_from_indices(index, dim=-1),
            conditioning=latent_action.quantizer.get_latents_from_indices(pressed),
            temperature=configs["inference"]["temperature"],
        )
        shown = tokenizer.detokenize(drawn)
        frames[0] = torch.cat((frames[0], shown[:, -1:]), dim=1)[:, -context:]
        return shown

    return play, _sizes(tokenizer=tokenizer, dynamics=dynamics)


def _vwm(
    configs: dict[str, dict[str, Any]], context: int, width: int, depth: int, heads: int, dtype: torch.dtype
) -> tuple[Play, dict[str, int]]:
    """Return our play step: the small preset with tinyworlds' tokens per frame, codebook, context and MaskGIT steps."""
    shared = configs["training"]
    size = (shared["frame_size"],) * 2
    window = context + 1  # the context, and the frame that is sampled
    codebook = [shared["num_bins"]] * shared["latent_dim"]
    tokenizer = SpaceTimeTokenizer(size, shared["patch_size"], codebook, width=128, depth=2, heads=4, window=window)
    dynamics = MaskGITDynamics(
        tokenizer.codebook_size, tokenizer.tokens_per_frame, shared["n_actions"], False, width, depth, heads, window
    )
    for part in (tokenizer, dynamics):
        for weight in part.parameters():
            if weight.ndim == 2 and not weight.any():  # weights that are zero at the start of training are random here
                torch.nn.init.normal_(weight, std=0.02)
    dynamics.to(dtype)
    sampling = MaskGITSampling(RIVAL_STEPS, configs["inference"]["temperature"])
    actions = ActionSpace("discrete", shared["n_actions"])
    simulator = GenieSimulator(tokenizer, dynamics, None, actions, sampling=sampling, context_frames=context)
    start = torch.randint(0, 256, (1, context, *size, 3), dtype=torch.uint8)
    state = [simulator.reset(start)[0]]

    def play() -> torch.Tensor | None:
        state[0], shown = simulator.step(state[0], torch.zeros(1, dtype=torch.int64))
        return shown.frame

    return play, _sizes(tokenizer=tokenizer, dynamics=dynamics)


def _sizes(**parts: torch.nn.Module) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _seconds(play: Play) -> float:
    start = time.perf_counter()
    play()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
