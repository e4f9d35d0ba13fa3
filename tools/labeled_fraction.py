"""Measure the effect of few labels: train one world per share of labeled clips, and evaluate its action control.

    python tools/labeled_fraction.py data/space_invaders data/space_invaders_unseen --config dit/minatar_small \
        --steps 4000 --labeled-share 0.5 --out runs/labeled --compile true
    python tools/labeled_fraction.py data/coinrun_latents data/coinrun_unseen --tokenizer runs/vae_bundle \
        --config configs/dit/coinrun_small.yaml --steps 1000 --out runs/labeled

Every world is trained on all clips for the same number of steps; the actions of unlabeled clips are hidden (Dreamer 4,
arXiv 2509.24527, section 4.3). Rollouts are under the recording's actions. Gains are relative to full labels:
(share - none) / (all - none). Other options go to ``vwm fit``. Run it again to continue where it stopped; with
``--only`` several runs can be made in parallel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

VWM = [str(Path(sys.executable).parent / "vwm")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="shards with actions, and with latents (vwm encode) if there is a tokenizer")
    parser.add_argument("test", help="shards with frames and actions, never trained on")
    parser.add_argument("--tokenizer", help="the tokenizer's bundle; none for a world in pixels")
    parser.add_argument("--config", default="configs/dit/coinrun_small.yaml", help="of the world")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of each world")
    parser.add_argument("--horizon", type=int, default=16, help="frames of a rollout")
    parser.add_argument("--clips", type=int, default=64, help="clips to measure on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.01, 0.1, 1.0])
    parser.add_argument("--labeled-share", type=float, help="share of the training clips that are labeled ones")
    parser.add_argument("--only", type=float, nargs="*", help="train and evaluate only these shares, without a table")
    parser.add_argument("--starts", default="none", help="shards for the bundles' names; none are required here")
    parser.add_argument("--out", type=Path, default=Path("runs/labeled"), help="folder of the runs")
    options, options.fit = parser.parse_known_args()
    reports = {}
    for share in options.shares if options.only is None else options.only:
        reports[share] = measured(options, share)
    if options.only is None:
        if not {0.0, 1.0} <= set(reports):
            raise SystemExit("gains are relative to no labels and all labels: --shares must contain 0 and 1")
        print(table(reports))


def measured(options: argparse.Namespace, share: float) -> dict[str, float]:
    """Train, export and evaluate one world, unless that was done before; return means over the rollout's horizon."""
    run = options.out / f"{share:g}"
    report, made = run / "report" / "report.json", run / "made_with.json"
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("only", "shares", "out")}
    if made.is_file() and json.loads(made.read_text()) != settings:
        raise SystemExit(f"{run} was made with other settings ({made}): choose another --out")
    if not report.is_file():
        run.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(settings))
        tokenizer = ["--model.tokenizer", options.tokenizer, "--data.fields", "[latents, actions]"]
        drawn = ["--data.labeled_share", str(options.labeled_share)]
        _vwm("fit", "-c", options.config, "--run", str(run), "--data.path", options.train,
             "--data.labeled_fraction", str(share), "--data.workers", "0", "--threads", "1",
             "--trainer.max_steps", str(options.steps), *(tokenizer if options.tokenizer else []),
             *(drawn if options.labeled_share and 0 < share < 1 else []), *options.fit)  # fmt: skip
        _vwm("export", str(run), "-o", str(run / "bundle"), "--data", options.starts)
        _vwm("eval", str(run / "bundle"), options.test, "--clips", str(options.clips), "--horizon",
             str(options.horizon), "--out", str(run / "report"), "--videos", "4")  # fmt: skip
    found = json.loads(report.read_text())
    rollout, control = found["rollout"], found["control"]
    delta = [d["mean"] for d in control["delta_psnr_by_horizon"]]
    return {
        "psnr": sum(rollout["psnr"]) / len(rollout["psnr"]),
        "ssim": sum(rollout["ssim"]) / len(rollout["ssim"]),
        "copy": sum(rollout["psnr_copy_last"]) / len(rollout["psnr_copy_last"]),
        "delta": sum(delta) / len(delta),
        "error": max(d["stderr"] for d in control["delta_psnr_by_horizon"]),
    }


def table(reports: dict[float, dict[str, float]]) -> str:
    """Return a Markdown table with one row per share."""
    none, full = reports[min(reports)], reports[max(reports)]
    rows = ["| Labeled | PSNR | gain | SSIM | gain | ΔPSNR | of full |", "|---|---|---|---|---|---|---|"]

    def gain(found: dict[str, float], key: str) -> str:
        span = full[key] - none[key]
        return f"{(found[key] - none[key]) / span:.0%}" if abs(span) > 1e-9 else "-"

    for share, found in sorted(reports.items()):
        rows.append(
            f"| {share:.0%} | {found['psnr']:.2f} dB | {gain(found, 'psnr')} | {found['ssim']:.3f} | "
            f"{gain(found, 'ssim')} | {found['delta']:.2f} (± {found['error']:.2f} at most) dB | "
            f"{found['delta'] / full['delta']:.0%} |"
        )
    return "\n".join([*rows, f"\nCopy of the last frame: {full['copy']:.2f} dB. Means over the horizon."])


def _vwm(*argv: str) -> None:
    subprocess.run([*VWM, *argv], check=True)


if __name__ == "__main__":
    main()
