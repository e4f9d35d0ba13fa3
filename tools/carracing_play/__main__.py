"""Play CarRacing worlds with the keys that people press, and compare what they show with the real game.

    python tools/carracing_play real real.json                  # minutes: what the game shows under each key pattern
    python tools/carracing_play world carracing real.json out/      # 60 s of play under each pattern from every start
    python tools/carracing_play steer carracing out/                # does steering turn the picture the right way?
    python tools/carracing_play causes carracing road/ keys/        # why does play break?
    python tools/carracing_play drift FIRST carracing out/          # drift, of the game too

``real`` drives to random places and then holds a pattern. ``world`` counts a frame as right where the share of road in
it lies between the game's 1st and 99th percentile under the same pattern at the same second, and the car is there; a
run holds where 90% of its frames are right. Where the world ends the game, the rest of the run counts as right if a
real one had ended so early. Under most patterns some cars of the game end on the grass, so that grass
alone is right, too: the share of frames with a road in view is therefore shown next to the game's. Runs of the game
that were not used for the percentiles are rated in the same way. It writes runs.json and a strip per pattern.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drift import measure_drift
from game import start_drive, take_actions
from measure import FPS, PATTERNS, key_pattern, observe_run, play_world, rate_run, read_clips, turn_of_view
from numpy.typing import NDArray
from PIL import Image

import vwm
from vwm.eval.metrics import set_psnr
from vwm.eval.rollouts import open_loop_rollout

MIN_ROAD = 0.02
"""Share of gray pixels at which a road is in view."""
STRIP_SECONDS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60)


def play_real(pattern: str, seed: int, seconds: float) -> NDArray[np.uint8]:
    """Drive to a random place and hold a pattern: uint8 [t, 64, 64, 3], from the first frame under the pattern."""
    rng = np.random.default_rng(seed)
    env, drive = start_drive(100_000 + seed, rng)
    *_, last = (next(drive) for _ in range(20 + int(rng.integers(150))))
    held = (key_pattern(pattern, t) for t in range(round(seconds * FPS)))
    frames = np.stack([last, *take_actions(env, held)])
    env.close()
    return frames


def measure_real(out: Path, runs: int, seconds: float) -> None:
    """Write road share and car of every frame of real runs; those that the file holds are kept."""
    table: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for pattern in PATTERNS:
        known = table.setdefault(pattern, [])
        for seed in range(len(known), runs):
            known.append(observe_run(play_real(pattern, seed, seconds)))
        lengths = [len(run["road"]) / FPS for run in known]
        print(f"{pattern:14} {len(known)} runs of {min(lengths):.0f} to {max(lengths):.0f} s", flush=True)
        out.write_text(json.dumps(table))


def measure_world(bundle: str, real: Path, out: Path, seconds: float, **sampling: Any) -> None:
    """Print and write how many runs hold, and the share of right frames by second."""
    out.mkdir(parents=True, exist_ok=True)
    table, world = json.loads(real.read_text()), vwm.load(bundle)
    if sampling:
        world = world.with_sampling(**sampling)
    results: dict[str, Any] = {}
    print(
        f"{'pattern':14} {'runs that hold':16} {'real runs':10} road in view, world / game, at 1, 3, 10, 20, 30, 60 s"
    )
    for pattern in PATTERNS:
        half = len(table[pattern]) // 2
        known, unseen = table[pattern][:half], table[pattern][half:]
        frames, lengths = play_world(world, world.starts, pattern, seconds, seed=0)
        runs = [observe_run(run[:length]) for run, length in zip(frames, lengths, strict=True)]
        rated = [rate_run(run, known, FPS, frames.shape[1]) for run in runs]
        controls = [rate_run(run, known, FPS) for run in unseen]
        holds, real_holds = ([bool(right.mean() >= 0.9) for right in rows] for rows in (rated, controls))
        right = np.mean(rated, axis=0)
        by_second = [float(right[max(0, int((s - 1) * FPS)) : int(s * FPS)].mean()) for s in range(1, int(seconds) + 1)]
        results[pattern] = {"holds": holds, "real_holds": real_holds, "right_by_second": by_second}
        results[pattern]["runs"] = runs
        in_view = [_road_in_view([np.array(run["road"]) for run in runs], s) for s in range(1, int(seconds) + 1)]
        real_in_view = [_road_in_view([np.array(run["road"]) for run in table[pattern]], s) for s in range(1, 21)]
        results[pattern] |= {"road_in_view": in_view, "real_road_in_view": real_in_view}
        shown = "  ".join(
            f"{in_view[s - 1]:.0%} / {real_in_view[min(s, 20) - 1]:.0%}" for s in (1, 3, 10, 20, 30, 60) if s <= seconds
        )
        print(
            f"{pattern:14} {sum(holds):3}/{len(holds):<12} {sum(real_holds):3}/{len(real_holds):<6} {shown}", flush=True
        )
        columns = [frames[:4, min(int(s * FPS), frames.shape[1] - 1)] for s in STRIP_SECONDS if s <= seconds]
        strip = np.concatenate([np.concatenate(list(column)) for column in columns], axis=1)
        Image.fromarray(strip).resize((strip.shape[1] * 2, strip.shape[0] * 2), 0).save(out / f"{pattern}.png")
    (out / "runs.json").write_text(json.dumps(results, indent=1))
    total = [hold for result in results.values() for hold in result["holds"]]
    print(f"all            {sum(total)}/{len(total)} runs hold ({np.mean(total):.0%})")


def _road_in_view(runs: list[NDArray[np.float64]], second: int) -> float:
    """Share of the frames of a second that show a road, over the runs that last so long."""
    start, stop = int((second - 1) * FPS), int(second * FPS)
    lasting = [run[start:stop] for run in runs if len(run) >= stop]
    return float(np.mean(np.concatenate(lasting) > MIN_ROAD)) if lasting else float("nan")


@torch.no_grad()
def measure_steering(bundle: str, out: Path, tries: int, seconds: float, **sampling: Any) -> None:
    """Print in how many of the tries steering turns the picture the right way, in the world and in the game."""
    out.mkdir(parents=True, exist_ok=True)
    world = vwm.load(bundle)
    if sampling:
        world = world.with_sampling(**sampling)
    contexts, turns = [], []
    for i in range(tries // 2):
        frames = play_real("gas", 5000 + i, world.spec.context_frames / FPS)[-world.spec.context_frames :]
        contexts.append(torch.from_numpy(frames.copy()))
    for steer in (-1.0, 1.0):
        state, frame = world.reset(torch.stack(contexts), seed=0)
        turned = np.zeros(len(contexts))
        for _ in range(round(seconds * FPS)):
            action = torch.tensor([steer, 0.0, -1.0]).expand(len(contexts), -1)
            state, output = world.step(state, action)
            turned += turn_of_view(frame.numpy(), output.frame.numpy())
            frame = output.frame
        turns.append(turned)
    right = np.concatenate((turns[0] < 0, turns[1] > 0))
    report = {"tries": len(right), "right": int(right.sum()), "left_degrees": float(turns[0].mean())}
    report["right_degrees"] = float(turns[1].mean())
    (out / "steering.json").write_text(json.dumps(report))
    print(
        f"steering turns the view the right way in {right.sum()} of {len(right)} tries ({right.mean():.1%}); ", end=""
    )
    print(f"mean turn {turns[0].mean():.1f} degrees with left, {turns[1].mean():.1f} with right, in {seconds} s")


def measure_causes(bundle: str, recordings: list[str], clips: int, horizon: int) -> None:
    """Print errors that tell the causes of bad play apart, for each recording.

    States that training never showed: the next frame after real frames is predicted worse than on the training
    recording. Fed-back errors: rollouts are worse than predictions that see the real frames before. Memory: more
    context frames help.
    """
    world = vwm.load(bundle)
    length = 8 + horizon
    for recording in recordings:
        frames, actions = read_clips(recording, length, clips)
        true, seeds = frames[:, 8:], torch.arange(len(frames))
        copy = set_psnr(true, frames[:, 7:8].expand_as(true))
        rolled = {
            context: set_psnr(
                true,
                open_loop_rollout(
                    world,
                    frames[:, 8 - context :],
                    actions[:, 8 - context : -1],
                    context,
                    seeds,
                    32,
                    f"context {context}",
                ),
            )
            for context in (1, 2, 4, 8)
        }
        seen = torch.stack([_next_frames(world, frames, actions, 8 + i, seeds) for i in range(horizon)], dim=1)
        forced, before = set_psnr(true, seen), set_psnr(true, frames[:, 7:-1])
        print(f"{recording}: PSNR in dB, {len(frames)} clips")
        print(f"  next frame after 8 real frames       {forced.mean():.2f}  (copy of the last: {before.mean():.2f})")
        for context, values in rolled.items():
            print(f"  rollout from {context} frames, horizon {horizon}   {values[-1]:.2f}  (copy: {copy[-1]:.2f})")


@torch.no_grad()
def _next_frames(world: Any, frames: torch.Tensor, actions: torch.Tensor, at: int, seeds: torch.Tensor) -> torch.Tensor:
    """Predict frame ``at`` from the 8 real frames before it: uint8 [n, h, w, 3]."""
    shown = []
    for part, action, seed in zip(frames.split(32), actions.split(32), seeds.split(32), strict=True):
        state, _ = world.reset(part[:, at - 8 : at], seed, action[:, at - 8 : at - 1])
        shown.append(world.step(state, action[:, at - 1])[1].frame)
    return torch.cat(shown)


def main() -> None:
    """Run one of the commands of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    real = commands.add_parser("real", help="measure the game")
    real.add_argument("out", type=Path)
    real.add_argument("--runs", type=int, default=48)
    real.add_argument("--seconds", type=float, default=20)
    world = commands.add_parser("world", help="measure a world")
    world.add_argument("bundle")
    world.add_argument("real", type=Path)
    world.add_argument("out", type=Path)
    world.add_argument("--seconds", type=float, default=60)
    steer = commands.add_parser("steer", help="measure whether steering turns the view")
    steer.add_argument("bundle")
    steer.add_argument("out", type=Path)
    steer.add_argument("--tries", type=int, default=200)
    steer.add_argument("--seconds", type=float, default=1.0)
    causes = commands.add_parser("causes", help="tell the causes of bad play apart")
    causes.add_argument("bundle")
    causes.add_argument("recordings", nargs="+")
    causes.add_argument("--clips", type=int, default=64)
    causes.add_argument("--horizon", type=int, default=10)
    drift = commands.add_parser("drift", help="measure drift, of the game too")
    drift.add_argument("bundles", nargs="+")
    drift.add_argument("out", type=Path)
    drift.add_argument("--starts", type=int, default=8)
    for command in (world, steer):
        command.add_argument("--sampling", type=json.loads, default={}, help='such as {"context_noise": 0.1}')
    options = parser.parse_args()
    if options.command == "real":
        measure_real(options.out, options.runs, options.seconds)
    elif options.command == "drift":
        measure_drift(options.bundles, options.out, options.starts)
    elif options.command == "causes":
        measure_causes(options.bundle, options.recordings, options.clips, options.horizon)
    elif options.command == "world":
        measure_world(options.bundle, options.real, options.out, options.seconds, **options.sampling)
    else:
        measure_steering(options.bundle, options.out, options.tries, options.seconds, **options.sampling)


if __name__ == "__main__":
    main()
