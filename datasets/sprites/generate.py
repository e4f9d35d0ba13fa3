"""Make sprite worlds: possible clips to train on, or pairs of possible and impossible ones to measure surprise.

    python datasets/sprites/generate.py data/sprites --clips 20000
    python datasets/sprites/generate.py data/sprites_unseen --clips 2000 --seed 1
    python datasets/sprites/generate.py data/sprites_surprise --pairs --clips 1200 --seed 2
    python datasets/sprites/generate.py data/moving --worlds moving --clips 4000 --frames 16

The same settings give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vwm.core.command_output import format_command, print_output, progress_bar
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.envs.sprite_worlds import CLIP_LENGTHS, PHYSICAL_PROPERTIES, SPRITE_WORLDS, make_possible_clip, make_quadruple

SHARD_CLIPS = 1000


def main(argv: list[str] | None = None) -> None:
    """Write the shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder for the shards")
    parser.add_argument("--worlds", nargs="+", choices=SPRITE_WORLDS, help="worlds, in equal numbers; all by default")
    parser.add_argument("--pairs", action="store_true", help="pairs of possible and impossible clips, 4 at a time")
    parser.add_argument("--clips", type=int, default=20_000, help="number of clips (20000)")
    parser.add_argument("--frames", type=int, default=24, help="frames per clip, 16 to 32 (24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    args = parser.parse_args(argv)
    worlds = args.worlds or (PHYSICAL_PROPERTIES if args.pairs else SPRITE_WORLDS)
    if args.clips < 1 or args.seed < 0:
        parser.error(f"--clips must be 1 or more and --seed 0 or more, got {args.clips} and {args.seed}")
    if args.frames not in CLIP_LENGTHS:
        parser.error(f"--frames must be 16 to 32, got {args.frames}")
    if args.pairs and "moving" in worlds:
        parser.error("--pairs requires worlds with a physical law that a clip can violate; 'moving' has none")
    if args.pairs and args.clips % 4:
        parser.error(f"--pairs writes groups of four clips: --clips must be a multiple of 4, got {args.clips}")
    if any(args.out.glob("*.tar")):
        parser.error(f"{args.out} holds shards already; choose a new folder")
    make = quadruples if args.pairs else possible
    made = make(worlds, args.clips, args.frames, args.seed)
    episodes = iter(progress_bar(made, desc="generate", total=args.clips, unit="clip"))
    for first in range(0, args.clips, SHARD_CLIPS):
        with ShardWriter(args.out / f"shard-{first // SHARD_CLIPS:06d}.tar") as writer:
            for clip in range(first, min(first + SHARD_CLIPS, args.clips)):
                writer.write(f"{clip:07d}", next(episodes))
    used_by = (
        ("surprise", "BUNDLE", args.out) if args.pairs else ("fit", "-c", "vjepa/sprites_small", "--data", args.out)
    )
    print_output(args.out, f"{args.clips} clips", format_command(*used_by))


def possible(worlds: list[str], clips: int, frames: int, seed: int) -> Iterator[Episode]:
    """Yield clips in which the physical laws hold."""
    for i in range(clips):
        world = worlds[i % len(worlds)]
        yield make_possible_clip(world, np.random.default_rng([seed, 0, i]), frames).episode(world)


def quadruples(worlds: list[str], clips: int, frames: int, seed: int) -> Iterator[Episode]:
    """Yield two pairs at a time: a possible clip, and the impossible one that begins with the same frames."""
    for i in range(clips // 4):
        world = worlds[i % len(worlds)]
        four = make_quadruple(world, np.random.default_rng([seed, 1, i]), frames)
        for k in (0, 1):
            for is_possible in (True, False):
                yield (four.possible if is_possible else four.impossible)[k].episode(
                    world,
                    property=world,
                    event=four.event,
                    pair=2 * i + k,
                    quadruple=i,
                    possible=is_possible,
                    violation_frame=four.violation,
                )


if __name__ == "__main__":
    main()
