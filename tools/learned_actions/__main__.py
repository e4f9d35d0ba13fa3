"""What do learned actions of CoinRun stand for?

    python tools/learned_actions world coinrun data/coinrun_unseen      # a world's codes: in the data, and held in play
    python tools/learned_actions train data/coinrun_keys                # recipes of the latent action model alone
    python tools/learned_actions limit data/coinrun_keys                # what the motion of the view says of the key

Keys are those with an effect: left, none or right, with or without a jump; CoinRun's other actions do what these do.
Mutual information is in bits above chance.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import vwm
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch, collate_clips
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array
from vwm.eval.action_descriptions import estimate_scene_shift
from vwm.eval.eval_clips import read_eval_clips
from vwm.eval.mutual_information import contingency_table, corrected_mutual_information, histogram_entropy
from vwm.eval.rollouts import infer_latent_actions
from vwm.models.genie import LatentActionModel

KEYS = ("left", "left and jump", "none", "jump", "right", "right and jump")
RECIPES: dict[str, dict[str, Any]] = {
    "[2, 2, 2]": {"codebook": [2, 2, 2]},
    "6": {"codebook": 6},
    "6, first": {"codebook": 6, "decoder_context": "first"},
}
BATCH_SIZE, CLIP_LENGTH, HELD_OUT_BATCHES = 12, 8, 30
LEARNING_RATE, WARMUP = 1e-3, 50


def key_of_action(actions: Tensor) -> Tensor:
    """Map Procgen's actions, int64 [...], to indices of ``KEYS``."""
    side = torch.where(actions < 3, 0, torch.where((actions >= 6) & (actions < 9), 2, 1))
    jump = (actions == 2) | (actions == 5) | (actions == 8)
    return 2 * side + jump.long()


def view_shifts(before: Tensor, after: Tensor) -> Tensor:
    """Estimate how the view moves, (right, up) in pixels: uint8 [n, h, w, 3] twice -> float [n, 2]."""
    pairs = zip(before.split(64), after.split(64), strict=True)
    scene = torch.cat([estimate_scene_shift(x, y) for x, y in pairs])
    return torch.stack((-scene[:, 1], scene[:, 0]), dim=1)


def print_codes(name: str, codes: Tensor, keys: Tensor, shifts: Tensor, count: int) -> None:
    """Print mutual information, and for each code its share, the keys in it, and the mean motion of the view."""
    signs = torch.sign(shifts).long() + 1
    directions = 3 * signs[:, 0] + signs[:, 1]
    with_key = corrected_mutual_information(codes, keys, count, len(KEYS), seed=0).bits
    with_side = corrected_mutual_information(codes, keys // 2, count, 3, seed=0).bits
    with_motion = corrected_mutual_information(codes, directions, count, 9, seed=0).bits
    print(f"{name}: with the key {with_key:.3f}, with its side {with_side:.3f}, with the motion {with_motion:.3f} bits")
    table = contingency_table(codes, keys, count, len(KEYS))
    for code in range(count):
        mask = codes == code
        if mask.any():
            shares = ", ".join(f"{key} {n / table[code].sum():.0%}" for key, n in zip(KEYS, table[code], strict=True))
            right, up = shifts[mask].mean(dim=0).tolist()
            print(f"  {code}: {mask.double().mean():.0%} of the steps, right {right:+.2f}, up {up:+.2f} px; {shares}")


@torch.no_grad()
def measure_world(bundle: str, recording: str, clips: int, starts: int, steps: int, strip: str | None) -> None:
    """Print what the codes of a world are in a recording, and what each does when it is held; ``strip``: a picture."""
    world = vwm.load(bundle)
    sample = read_eval_clips(
        vwm.open_clips(recording, 12, fields=("frames", "actions")), clips, world.spec.context.image_size
    )
    assert sample.actions is not None
    codes = infer_latent_actions(world, sample.frames, 16)
    shifts = view_shifts(sample.frames[:, :-1].flatten(0, 1), sample.frames[:, 1:].flatten(0, 1))
    count = world.num_latent_actions
    print_codes(bundle, codes.flatten(), key_of_action(sample.actions[:, :-1]).flatten(), shifts, count)
    context = world.spec.context_frames
    starts = min(starts, len(codes))
    held = [hold_action(world, sample.frames[:starts, :context], codes[:starts, : context - 1], code, steps)
            for code in range(count)]  # fmt: skip
    paths = torch.stack([view_paths(frames) for frames in held])
    for name, path in zip(world.spec.actions.names, paths, strict=True):
        mean, deviation = path[:, -1].mean(dim=0).tolist(), path[:, -1].std(dim=0).tolist()
        print(
            f"  {name} held for {steps} steps: right {mean[0]:+.1f} (deviation {deviation[0]:.1f}), up {mean[1]:+.1f} "
            f"({deviation[1]:.1f}) px, at most {path[..., 1].amax(dim=1).clamp(min=0).mean():+.1f} on the way"
        )
    print_order(world.spec.actions.names, paths[:, :, -1, 0])
    if strip is not None:
        rows = [frames[0] for frames in held]
        Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy()).save(strip)


def hold_action(world: Any, frames: Tensor, codes: Tensor, code: int, steps: int) -> Tensor:
    """Hold an action after shown frames, [n, c, h, w, 3]: the frames from the last of them, [n, 1 + steps, ...]."""
    count = len(frames)
    state, frame = world.reset(frames, torch.arange(count), codes)
    shown = [frame.cpu()]
    for _ in range(steps):
        state, output = world.step(state, torch.full((count,), code))
        shown.append(output.frame.cpu())
    return torch.stack(shown, dim=1)


def view_paths(frames: Tensor) -> Tensor:
    """Where the view went in clips, uint8 [n, t, h, w, 3]: (right, up) of its start in pixels, float [n, t-1, 2]."""
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    return view_shifts(before, after).unflatten(0, (len(frames), -1)).cumsum(dim=1)


def print_order(names: tuple[str, ...], right: Tensor) -> None:
    """Print in how many of the starts right leads further right than left: float [actions, n]."""
    sides = dict(zip(names, right, strict=True))
    if {"left", "right"} <= sides.keys():
        ahead, behind = (int(x.sum()) for x in (sides["right"] > sides["left"], sides["right"] < sides["left"]))
        print(f"  right ends right of left from {ahead} of {right.shape[1]} starts, left of it from {behind}")


def read_batch(dataset: Any, number: int) -> ClipBatch:
    """Read a batch of the seeded order; a small data set begins again."""
    count = len(dataset.order)
    return collate_clips([dataset[(0, (number * BATCH_SIZE + i) % count)] for i in range(BATCH_SIZE)])


def compare_recipes(recording: str, steps: int) -> None:
    """Train latent action models on equal batches, and print what their codes are in held-out episodes."""
    train, held_out = (
        vwm.open_clips(recording, CLIP_LENGTH, fields=("frames", "actions"), split=split, val_fraction=0.1)
        for split in ("train", "val")
    )
    torch.manual_seed(0)
    settings = {"width": 128, "depth": 2, "heads": 4, "window": CLIP_LENGTH, "patch_size": 16}
    models = {name: LatentActionModel(**settings, **recipe) for name, recipe in RECIPES.items()}
    optimizers = {
        name: torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0) for name, model in models.items()
    }
    for step in range(steps):
        video = frames_to_float(read_batch(train, step).frames)
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (0.52 + 0.5 * math.cos(math.pi * step / steps))
        for name, model in models.items():
            optimizers[name].param_groups[0]["lr"] = rate
            train_step(model, optimizers[name], video)
    batches = [read_batch(held_out, i) for i in range(HELD_OUT_BATCHES)]
    frames = torch.cat([batch.frames for batch in batches if batch.frames is not None])
    actions = torch.cat([batch.actions for batch in batches if batch.actions is not None])
    shifts = view_shifts(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
    keys = key_of_action(actions[:, :-1]).flatten()
    print(f"{len(keys)} transitions; the key has {histogram_entropy(torch.bincount(keys)):.2f} bits")
    for name, model in models.items():
        with torch.no_grad():
            codes = torch.cat([model.eval().infer(frames_to_float(batch.frames)).actions for batch in batches])
        print_codes(f"codebook {name}", codes.flatten(), keys, shifts, model.num_actions)


def train_step(model: LatentActionModel, optimizer: torch.optim.Optimizer, video: Tensor) -> None:
    """Train on one batch, float [b, t, 3, h, w]."""
    with torch.autocast("cpu", torch.bfloat16):
        predicted, actions = model(video)
    loss = F.mse_loss(predicted.float(), video[:, 1:]) + actions.loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def measure_limit(recording: str, episodes: int, frames: int) -> None:
    """Print what the motion of the view between frames says of a key that was held between them."""
    entries = [(shard, entry) for shard in list_shards(recording) for entry in load_shard_index(shard).episodes[:12]]
    videos = [torch.from_numpy(read_array(*item, "frames")[:frames].copy()) for item in entries[:episodes]]
    keys = [
        key_of_action(torch.from_numpy(read_array(*item, "actions")[:frames].copy())) for item in entries[:episodes]
    ]
    edges = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    for step in (1, 2, 4):
        found = [
            (video[t], video[t + step], held[t])
            for video, held in zip(videos, keys, strict=True)
            for t in range(0, len(held) - step, step)
            if bool((held[t : t + step] == held[t]).all())
        ]
        before, after, key = (torch.stack(column) for column in zip(*found, strict=True))
        right, up = torch.bucketize(view_shifts(before, after).T.contiguous(), edges)
        with_key = corrected_mutual_information(key, 5 * right + up, len(KEYS), 25, seed=0).bits
        with_side = corrected_mutual_information(key // 2, right, 3, 5, seed=0).bits
        print(
            f"{step} frames a step ({len(key)} steps): the motion tells {with_key:.2f} of "
            f"{histogram_entropy(torch.bincount(key)):.2f} bits of the key, and {with_side:.2f} of "
            f"{histogram_entropy(torch.bincount(key // 2)):.2f} of its side"
        )


def main() -> None:
    """Run one of the commands of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    world = commands.add_parser("world", help="what the codes of a world stand for")
    world.add_argument("bundle")
    world.add_argument("recording")
    world.add_argument("--clips", type=int, default=64)
    world.add_argument("--starts", type=int, default=16)
    world.add_argument("--steps", type=int, default=10)
    world.add_argument("--strip", help="picture to write: a row per action, held from the first start")
    train = commands.add_parser("train", help="compare recipes of the latent action model")
    train.add_argument("recording")
    train.add_argument("--steps", type=int, default=500)
    limit = commands.add_parser("limit", help="what the motion of the view says of the key")
    limit.add_argument("recording")
    limit.add_argument("--episodes", type=int, default=24)
    limit.add_argument("--frames", type=int, default=160)
    options = parser.parse_args()
    if options.command == "world":
        measure_world(options.bundle, options.recording, options.clips, options.starts, options.steps, options.strip)
    elif options.command == "train":
        compare_recipes(options.recording, options.steps)
    else:
        measure_limit(options.recording, options.episodes, options.frames)


if __name__ == "__main__":
    main()
