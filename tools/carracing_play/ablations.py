"""What each option of training for play brings: a world is trained on with one option changed at a time.

    python tools/carracing_play/ablations.py FIRST ALL ROAD UNSEEN OUT --steps 200

FIRST is the bundle from which every training begins, ALL and ROAD are encoded recordings (``--policy keys`` and
``road``; ``road`` alone), UNSEEN is a recording for measuring. All trainings have equal steps, clips and seed, except
for the row with twice the steps. Run it again to continue: rows whose report exists are not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

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


def vwm(*arguments: object) -> None:
    """Run a command of vwm in a process of its own, and stop where it fails."""
    subprocess.run([sys.executable, "-m", "vwm.cli.main", *map(str, arguments)], check=True)


def measure(bundle: Path | str, unseen: Path, report: Path) -> None:
    """Write a report unless there is one."""
    if not (report / "report.json").exists():
        vwm("eval", bundle, unseen, "--clips", 24, "--horizon", 24, "--context", 5, "--drift-starts", 2, "-o", report)


def train(name: str, changes: list[str], options: argparse.Namespace) -> Path:
    """Train a row, measure it, and return the folder of its report; the rest of the run is removed."""
    run: Path = options.out / "".join(c if c.isalnum() else "_" for c in name)
    report = run / "report"
    if (report / "report.json").exists():
        return report
    places = {"ROAD": options.road, "TWICE": 2 * options.steps}
    fit = [
        "fit",
        "-c",
        "dit/carracing_play",
        "--run",
        run / "dit",
        "--threads",
        1,
        "--data.init_args.path",
        options.all,
    ]
    fit += ["--model.init_args.pretrained", options.first, "--model.init_args.tokenizer", options.first]
    fit += ["--trainer.max_steps", options.steps, "--trainer.limit_val_batches", 0, "--samples.every", 0]
    fit += ["--data.init_args.fields", "[latents, actions]", "--data.init_args.workers", 0, *BASE]
    vwm(*fit, *(places.get(change, change) for change in changes))
    vwm("export", run / "dit", "-o", run / "world", "--data", options.unseen, "--float16")
    measure(run / "world", options.unseen, report)
    shutil.rmtree(run / "dit")
    return report


def row(name: str, report: Path) -> str:
    """Format a line of the table."""
    found = json.loads((report / "report.json").read_text())
    psnr, drift, control = found["rollout"]["psnr"], found["drift"]["mean_by_second"], found["control"]["delta_psnr"]
    shown = f"{psnr[0]:.2f} / {psnr[7]:.2f} / {psnr[23]:.2f} | {control['mean']:.2f} ± {control['stderr']:.2f}"
    return f"| {name} | {shown} | {drift[0]:.2f} / {drift[2]:.2f} / {drift[4]:.2f} |"


def main() -> None:
    """Train and measure every row, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("first", "all", "road", "unseen", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    options = parser.parse_args()
    measure(options.first, options.unseen, options.out / "first")
    lines = [
        "| | PSNR at 1 / 8 / 24 frames | ΔPSNR | drift at 1 / 3 / 5 s |",
        "|---|---|---|---|",
        row("not trained on", options.out / "first"),
    ]
    for name in options.rows:
        lines.append(row(name, train(name, ROWS[name], options)))
        (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
