"""What each option of training for play brings: a world is trained on with one option changed at a time.

    python tools/carracing_play/ablations.py FIRST ALL ROAD UNSEEN REAL OUT --steps 200

FIRST is the bundle from which every training begins, ALL and ROAD are encoded recordings (``--policy keys`` and
``road``; ``road`` alone), UNSEEN is a recording for measuring, REAL a table of the game's frames (``python
tools/carracing_play real``). All trainings have equal steps, clips and seed, except for the
row with twice the steps. Run it again to continue: rows whose report exists are not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import FPS, PATTERNS, observe_run, play_world, rate_run, read_clips

import vwm
from vwm.eval.metrics import set_psnr
from vwm.eval.rollouts import open_loop_rollout

CONTEXT, HORIZON, CLIPS = 8, 24, 24
STARTS, SECONDS = 3, 6
"""Of play under each key pattern."""
NETWORK = "--model.init_args.dynamics.init_args"
BASE = [f"{NETWORK}.window", "8", "--model.init_args.rollouts", "null", "--model.init_args.outcomes", "null"]
OWN_ROLLOUTS = ["--model.init_args.rollouts", '{"share": 0.5, "context_frames": 2, "steps": 2}']
ROWS: dict[str, list[str]] = {
    "base: recorded, clean past with noise, 8 frames": [],
    "own rollouts": OWN_ROLLOUTS,
    "window of 16 frames": [f"{NETWORK}.window", "16"],
    "one sink frame": [f"{NETWORK}.sink_frames", "1"],
    "memory: 4 older frames, every 2nd": [f"{NETWORK}.memory_frames", "4", f"{NETWORK}.memory_every", "2"],
    "clean past without noise": ["--model.init_args.context_noise", "0.0"],
    "noisy past (diffusion forcing)": ["--model.init_args.context", "noisy"],
    "careful driving only": ["--data.init_args.path", "ROAD"],
    "own rollouts, window of 16 frames": [*OWN_ROLLOUTS, f"{NETWORK}.window", "16"],
    "twice the steps": ["--trainer.max_steps", "TWICE"],
}


def run_command(*arguments: object) -> None:
    """Run a command of vwm in a process of its own, and stop where it fails."""
    subprocess.run([sys.executable, "-m", "vwm.cli.main", *map(str, arguments)], check=True)


@torch.no_grad()
def measure(bundle: Path | str, options: argparse.Namespace, report: Path) -> None:
    """Write rollout errors on unseen drives and the share of right frames under held keys, unless they are there."""
    if report.exists():
        return
    world, real = vwm.load(bundle), json.loads(options.real.read_text())
    frames, actions = read_clips(str(options.unseen), CONTEXT + HORIZON, CLIPS)
    rolled = open_loop_rollout(world, frames, actions[:, :-1], CONTEXT, torch.arange(CLIPS), CLIPS, "unseen drives")
    found: dict[str, Any] = {"psnr": set_psnr(frames[:, CONTEXT:], rolled).tolist(), "right": {}}
    found["copy"] = set_psnr(frames[:, CONTEXT:], frames[:, CONTEXT - 1 : CONTEXT].expand_as(rolled)).tolist()
    for pattern in PATTERNS:
        shown, _ = play_world(world, world.starts[:STARTS], pattern, SECONDS, seed=0)
        rated = [rate_run(observe_run(run), real[pattern][: len(real[pattern]) // 2], FPS) for run in shown]
        found["right"][pattern] = float(np.mean(rated))
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(found, indent=1))


def train(name: str, changes: list[str], options: argparse.Namespace) -> Path:
    """Train a row, measure it, and return the file of what was measured; the run itself is removed."""
    run: Path = options.out / "".join(c if c.isalnum() else "_" for c in name)
    report = run / "measured.json"
    if report.exists():
        return report
    places = {"ROAD": options.road, "TWICE": 2 * options.steps}
    fit: list[object] = ["fit", "-c", "dit/carracing_play", "--run", run / "dit", "--threads", 1]
    fit += ["--data.init_args.path", options.all]
    fit += ["--model.init_args.pretrained", options.first, "--model.init_args.tokenizer", options.first]
    fit += ["--trainer.max_steps", options.steps, "--trainer.limit_val_batches", 0, "--samples.every", 0]
    fit += ["--data.init_args.fields", "[latents, actions]", "--data.init_args.workers", 0, *BASE]
    run_command(*fit, *(places.get(change, change) for change in changes))
    run_command("export", run / "dit", "-o", run / "world", "--data", options.unseen, "--float16")
    measure(run / "world", options, report)
    shutil.rmtree(run / "dit")
    return report


def row(name: str, report: Path) -> str:
    """Format a line of the table."""
    found = json.loads(report.read_text())
    psnr, right = found["psnr"], found["right"]
    errors = " / ".join(f"{psnr[i - 1]:.2f}" for i in (1, 8, HORIZON))
    worst = min(right, key=right.get)
    return f"| {name} | {errors} | {np.mean(list(right.values())):.0%} ({worst} {right[worst]:.0%}) |"


def main() -> None:
    """Train and measure every row, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("first", "all", "road", "unseen", "real", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    measure(options.first, options, options.out / "first.json")
    lines = [
        f"| | PSNR at 1 / 8 / {HORIZON} frames | right frames in {SECONDS} s of play (worst pattern) |",
        "|---|---|---|",
        row("not trained on", options.out / "first.json"),
    ]
    for name in options.rows:
        lines.append(row(name, train(name, ROWS[name], options)))
        (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
