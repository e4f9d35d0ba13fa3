"""Measure how fast ``vwm fit`` trains on one GPU: the use of the chip (MFU) and loss curves in bfloat16 and in float8.

    python tools/gpu/47_training_speed.py OUT [FOLDER_OF_THE_LAST_CALL]
    python tools/gpu/47_training_speed.py OUT --smoke          the same with tiny networks, without a GPU

Trains the shipped configs as the command does, on synthetic latents and raw frames: a 600M diffusion world 200 steps in
bfloat16 and in float8, V-JEPA ViT-L/16 on 16 frames of 256x256, and Genie's tokenizer. Each measurement is written to
OUT/training_speed.json at once; those of the last call are kept, and those for which there is no time are left to the
next call. In addition to torch and Lightning it requires diffusers, einops, timm, jsonargparse, webdataset,
vector-quantize-pytorch and, for float8, torchao.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from vwm.cli.config_arguments import expand_arguments  # noqa: E402
from vwm.core.components import save_component  # noqa: E402
from vwm.data.episode import Episode  # noqa: E402
from vwm.data.shards import ShardWriter  # noqa: E402
from vwm.nn.float8 import convert_to_float8  # noqa: E402
from vwm.runs.metric_tables import read_csv_rows  # noqa: E402
from vwm.tokenizers.causal_vae import CausalVAE  # noqa: E402
from vwm.train import acceleration  # noqa: E402
from vwm.train.fit import fit_model  # noqa: E402

RESERVE = 130
"""Seconds that a measurement may take, compilation included; none is started with less time left."""
LATENTS = (18, 32, 16)
"""Height, width and channels of the diffusion world's latents."""
DYNAMICS = "--model.init_args.dynamics.init_args"
TINY_DIT = [f"{DYNAMICS}.width=256", f"{DYNAMICS}.depth=2", f"{DYNAMICS}.heads=2", f"{DYNAMICS}.window=4"]
TINY_VIT = [
    f"--model.init_args.{part}.init_args.{setting}"
    for part, sizes in (("encoder", []), ("predictor", ["encoder_width=32"]))
    for setting in [*sizes, "width=32", "depth=2", "heads=2", "image_size=[128,128]", "frames=4"]
]  # fmt: skip
TINY_TOKENIZER = [f"--model.init_args.tokenizer.init_args.{setting}" for setting in ("width=16", "depth=1", "heads=2")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=560, help="of this call")
    parser.add_argument("--workers", type=int, default=12, help="reader processes")
    parser.add_argument("--only", nargs="*", help="names of measurements")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and few steps")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    last = (options.before or options.out) / "training_speed.json"
    found: dict[str, Any] = json.loads(last.read_text()) if last.is_file() and not options.smoke else {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["machine"] = f"{device}, torch {torch.__version__}"
    if options.smoke:
        emulate_float8()
    with tempfile.TemporaryDirectory() as scratch:
        plan = measurements(Path(scratch), options.smoke)
        for name, arguments in plan.items():
            if name in found or (options.only and name not in options.only):
                continue
            if not options.smoke and ends - time.monotonic() < RESERVE:
                print(f"no time left for {name!r}: give the next call this folder")
                break
            try:
                found[name] = measure(Path(scratch) / "run", arguments, options)
            except Exception as error:  # noqa: BLE001 - the other rows do not depend on it
                traceback.print_exc()
                found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            (options.out / "training_speed.json").write_text(json.dumps(found, indent=1))
    print_tables(found)


def measurements(scratch: Path, smoke: bool) -> dict[str, list[str]]:
    """Write the data, and return the arguments of ``vwm fit`` for each measurement."""
    vae = CausalVAE(
        (360, 640), latent_channels=16, time_compression=1, patch_size=5, widths=[8, 8, 8], depths=[1, 1, 1]
    )  # its weights are not used: the world learns from latents
    save_component(vae, scratch / "vae")
    # Enough for 30 steps or more an epoch, at whose ends reader processes start again.
    write_latents(scratch / "latents", episodes=4 if smoke else 64, frames=48 if smoke else 320)
    videos = {"episodes": 4, "frames": 8, "side": 128} if smoke else {"episodes": 120, "frames": 64, "side": 256}
    write_frames(scratch / "videos", **videos)
    write_frames(scratch / "small", episodes=4 if smoke else 128, frames=32 if smoke else 256, side=64)
    clip = ["--data.clip_length", "4", "--batch", "2"] if smoke else ["--batch", "16"]
    dit = ["-c", "dit/oasis_600m", "--data", str(scratch / "latents"), "--tokenizer", str(scratch / "vae")]
    dit += ["--gradient-checkpointing", "none", "--steps", "4" if smoke else "200", *clip, *(TINY_DIT if smoke else [])]
    dit += ["--model.optimizer.warmup", "20", "--model.optimizer.schedule", "constant"]
    vjepa = ["-c", "vjepa/vjepa2_vitl16", "--data", str(scratch / "videos"), "--data.stride", "1", *clip]
    vjepa += ["--gradient-checkpointing", "none", "--steps", "4" if smoke else "80", *(TINY_VIT if smoke else [])]
    vjepa += ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
    tokenizer = ["-c", "tokenizer/coinrun_base", "--data", str(scratch / "small"), "--steps", "4" if smoke else "200"]
    tokenizer += ["--batch", "2", *TINY_TOKENIZER] if smoke else []
    return {
        "600M DiT, bfloat16": dit,
        "V-JEPA ViT-L/16, 16 x 256^2": vjepa,
        "Genie tokenizer, coinrun_base": tokenizer,
        "600M DiT, float8": [*dit, "--float8", "tensorwise"],
    }


def write_latents(folder: Path, episodes: int, frames: int) -> None:
    """Write episodes of waves that move as two of 25 action numbers say, as float16 latents [T, h, w, c].

    They are eight different ones in turn.
    """
    rng, (height, width, channels) = np.random.default_rng(0), LATENTS
    rows, columns = np.mgrid[:height, :width] / 4.0
    waves = []
    for _ in range(8):
        actions = np.cumsum(rng.normal(0, 0.2, (frames, 25)), axis=0).clip(-1, 1).astype(np.float32)
        moved = np.cumsum(actions[:, :2], axis=0)
        angles = rows + moved[:, :1, None] + columns + moved[:, 1:, None]
        heights = np.sin(angles[..., None] + rng.uniform(0, 6.3, channels))
        waves.append((actions, (1.4 * heights + rng.normal(0, 0.1, heights.shape)).astype(np.float16)))
    meta = json.dumps({"frames": frames, "height": 360, "width": 640}).encode()
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for episode in range(episodes):
            actions, latents = waves[episode % len(waves)]
            writer.write_sample(
                {"__key__": f"waves-{episode}", "json": meta, "actions.npy": actions, "latents.npy": latents}
            )


def write_frames(folder: Path, episodes: int, frames: int, side: int) -> None:
    """Write episodes of raw frames: squares that move over a gradient, eight different videos in turn."""
    rng = np.random.default_rng(1)
    background = np.linspace(0, 120, side).astype(np.uint8)
    videos = np.zeros((8, frames, side, side, 3), np.uint8)
    videos[:] = background[:, None, None]
    for video in videos:
        for _ in range(6):
            start, speed = rng.uniform(0, side, 2), rng.uniform(-side / 16, side / 16, 2)
            color, size = rng.integers(60, 255, 3), side // 8
            for t in range(frames):
                row, column = ((start + t * speed) % (side - size)).astype(int)
                video[t, row : row + size, column : column + size] = color
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for episode in range(episodes):
            recorded = Episode(videos[episode % len(videos)], rng.integers(0, 4, frames))
            writer.write(f"squares-{episode}", recorded, raw=True)


def measure(run: Path, arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Train as ``vwm fit`` does; return its speed after the first intervals, its memory and its loss curve."""
    common = ["--run", str(run), "--no-resume", "--samples.every", "0", "--checkpoint.every", "1000000"]
    common += ["--trainer.log_every_n_steps", "1" if options.smoke else "10", "--data.val_fraction", "0"]
    common += [
        "--data.workers",
        "0" if options.smoke else str(options.workers),
        "--trainer.enable_progress_bar",
        "false",
    ]
    if not torch.cuda.is_available():
        common += ["--device", "cpu", "--trainer.precision", "bf16-mixed"]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    fit_model(expand_arguments("fit", [*arguments, *common]))
    rows = read_csv_rows(run / "metrics" / "train.csv")
    timed = [row for row in rows if "tokens_per_second" in row][2:]
    result: dict[str, Any] = {
        name: statistics.median(row[name] for row in timed)
        for name in ("tokens_per_second", "teraflops_per_second", "steps_per_second", "mfu")
        if all(name in row and row[name] == row[name] for row in timed)
    }
    result["gigabytes"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    result["losses"] = [[int(row["step"]) + 1, row["loss"]] for row in rows if "loss" in row]
    result["seconds"] = time.monotonic() - began
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def emulate_float8() -> None:
    """Let ``vwm fit`` take float8 on any device: without a GPU its values are computed in bfloat16."""
    acceleration.check_float8_device = lambda recipe, device: None
    acceleration.convert_to_float8 = partial(convert_to_float8, emulate=True)


def print_tables(found: dict[str, Any]) -> None:
    print(f"\n{found['machine']}\n| training | MFU | TFLOP/s | tokens/s | ms a step | GB |\n|---|---|---|---|---|---|")
    for name, value in found.items():
        if name != "machine" and "error" in value:
            print(f"| {name} | {value['error']} |")
        elif name != "machine":
            mfu = f"{value['mfu']:.1%}" if "mfu" in value else ""
            memory = f"{value['gigabytes']:.1f}" if value["gigabytes"] else ""
            milliseconds = 1e3 / value["steps_per_second"]
            print(
                f"| {name} | {mfu} | {value['teraflops_per_second']:.3g} | {value['tokens_per_second']:,.0f} "
                f"| {milliseconds:.1f} | {memory} |"
            )
    curves = {
        name: dict(value["losses"]) for name, value in found.items() if name.startswith("600M") and "losses" in value
    }
    steps = [step for step in sorted({step for curve in curves.values() for step in curve}) if step % 20 == 0]
    print(f"\n| loss after step | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}")
    for step in steps or sorted({step for curve in curves.values() for step in curve}):
        cells = [f"{curve[step]:.4f}" if step in curve else "" for curve in curves.values()]
        print(f"| {step} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
