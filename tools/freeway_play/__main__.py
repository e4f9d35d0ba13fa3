"""Play Freeway worlds, and compare their rewards and ends with the real game.

    python tools/freeway_play outcomes freeway data/freeway_unseen      # rewards and ends against recorded ones
    python tools/freeway_play play freeway out/                         # hold up, nothing or down for a minute
    python tools/freeway_play obey freeway data/freeway_unseen          # does the chicken go where the key says?

``outcomes`` splits recorded games into windows, shows the world the start of each and rolls it out over the rest under
the recorded actions, so that every action after a start is predicted once. ``play`` counts crossings and ends, prints
the returns of the real game under the same keys, and writes a strip of frames per key. ``obey`` rolls out up and down
from the same frames and looks for the chicken's yellow pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import vwm
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array, read_episode_metadata
from vwm.envs.wrapped_env import WrappedEnv

FPS = 15.0
KEYS = {"nothing": 0, "up": 1, "down": 2}
MIN_REWARD = 0.5
"""Expected reward from which on a step counts as a predicted crossing."""
TOLERANCE = 2
"""Frames by which a predicted crossing may miss the recorded one."""
CHICKEN_COLUMNS = slice(15, 21)
CENTER_LINE = slice(30, 34)
"""Rows of the yellow line, in which the chicken is not told from it."""


class Games(NamedTuple):
    """Windows of recorded games: frames uint8 [n, t, h, w, 3], actions int64, rewards float32 and ends bool, [n, t]."""

    frames: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    ends: torch.Tensor


def read_windows(recording: str, context: int, horizon: int) -> Games:
    """Read windows of ``context`` shown frames and the ``horizon`` actions from the last of them on.

    They are ``horizon`` apart, counted back from the end of each episode, so that no action is in two windows.
    """
    rows: list[tuple[Any, ...]] = []
    for shard in list_shards(recording):
        for entry in load_shard_index(shard).episodes:
            frames, actions, rewards = (read_array(shard, entry, name) for name in ("frames", "actions", "rewards"))
            ends = np.zeros(len(frames), bool)
            ends[-1] = read_episode_metadata(shard, entry)["terminated"]
            for stop in range(len(frames), context + horizon - 2, -horizon):
                window = slice(stop - context - horizon + 1, stop)
                rows.append((frames[window], actions[window], rewards[window], ends[window]))
    return Games(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))


@torch.no_grad()
def roll_out(
    world: Any, games: Games, actions: torch.Tensor, context: int, batch: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Roll out from the first frames: frames uint8 [n, t, h, w, 3], rewards and ends [n, t] of ``actions``."""
    parts = []
    for first in range(0, len(actions), batch):
        rows = slice(first, first + batch)
        shown, taken = games.frames[rows, :context], actions[rows]
        seeds = torch.arange(first, first + len(taken))
        state, _ = world.reset(shown, seeds, games.actions[rows, : context - 1])
        steps = []
        for action in taken.unbind(1):
            state, output = world.step(state, action)
            steps.append((output.frame, output.reward, output.terminated))
        parts.append([torch.stack(column, dim=1) for column in zip(*steps, strict=True)])
    frames, rewards, ends = (torch.cat(column) for column in zip(*parts, strict=True))
    return frames, rewards, ends


def match_events(predicted: NDArray[np.bool_], true: NDArray[np.bool_], tolerance: int) -> int:
    """Count predicted events of [n, t] that a true one of the same row explains, each used once, in order of time."""
    matched = 0
    for guesses, events in zip(predicted, true, strict=True):
        free = list(np.flatnonzero(events))
        for guess in np.flatnonzero(guesses):
            near = [event for event in free if abs(event - guess) <= tolerance]
            if near:
                free.remove(near[0])
                matched += 1
    return matched


def measure_outcomes(bundle: str, recordings: list[str], context: int, horizon: int) -> None:
    """Print how well rewards and ends of recorded games are predicted, by rollouts of ``horizon`` steps."""
    world = vwm.load(bundle)
    for recording in recordings:
        games = read_windows(recording, context, horizon)
        steps = slice(context - 1, None)  # the action of the last shown frame is the first to be taken
        _, rewards, ends = roll_out(world, games, games.actions[:, steps], context)
        _print_rewards(recording, rewards.numpy(), games.rewards[:, steps].numpy())
        _print_ends(ends.numpy(), games.ends[:, steps].numpy())


def _print_rewards(recording: str, rewards: NDArray[Any], true: NDArray[Any]) -> None:
    crossings, guesses = true > 0, rewards >= MIN_REWARD
    matched = match_events(guesses, crossings, TOLERANCE)
    print(f"{recording}: {true.size} steps in windows of {true.shape[1]}, {crossings.sum()} crossings")
    print(
        f"  rewards: correlation by step {np.corrcoef(rewards.ravel(), true.ravel())[0, 1]:.3f}, of the sums of "
        f"windows {np.corrcoef(rewards.sum(1), true.sum(1))[0, 1]:.3f}; sum {rewards.sum():.1f} of {true.sum():.0f}"
    )
    print(
        f"  crossings: {guesses.sum()} predicted, {matched} within {TOLERANCE} frames of a recorded one: precision "
        f"{matched / max(1, guesses.sum()):.2f}, recall {matched / max(1, crossings.sum()):.2f} (guessing always: "
        f"precision {crossings.mean():.3f})"
    )


def _print_ends(ends: NDArray[np.bool_], true: NDArray[np.bool_]) -> None:
    """Ends are sampled, so that a world that knows the chance of an end predicts it in that share of the cases."""
    with_end = true.any(axis=1)
    if not with_end.any():
        print("  ends: none recorded")
        return
    at_end = ends[true].sum()
    early = ends[with_end].any(axis=1) & ~ends[true]
    false, elsewhere = int(ends[~with_end].sum()), ends[~with_end].size
    print(
        f"  ends: {at_end} of {with_end.sum()} predicted at their step, {early.sum()} only earlier in the window; "
        f"{false} false ones in {elsewhere} steps of other windows"
    )


@torch.no_grad()
def measure_play(bundle: str, out: Path, seconds: float, repeats: int) -> None:
    """Print crossings and ends under held keys from every start, and write strips of frames."""
    out.mkdir(parents=True, exist_ok=True)
    world = vwm.load(bundle)
    starts = world.starts.repeat(repeats, 1, 1, 1, 1)
    for key, action in KEYS.items():
        state, frame = world.reset(starts, torch.arange(len(starts)))
        lasting = torch.ones(len(starts), dtype=torch.bool)
        played, crossings, length, shown = 0, 0, torch.zeros(len(starts)), [frame]
        for _ in range(round(seconds * FPS)):
            state, output = world.step(state, torch.full((len(starts),), action))
            played += int(lasting.sum())
            crossings += int((lasting & (output.reward >= MIN_REWARD)).sum())
            length += lasting
            lasting &= ~output.terminated
            shown.append(output.frame)
        real = play_real(action, 1)
        ended = length[~lasting] / FPS
        print(
            f"{key:8} {crossings} crossings in {played} frames: {2048 * crossings / played:.1f} in the frames of a "
            f"game (the game: {real:.0f}); {len(ended)} of {len(starts)} ended"
            + (f", after {ended.median():.0f} s at the median" if len(ended) else ""),
            flush=True,
        )
        picked = [shown[min(len(shown) - 1, round(s * FPS))][:4] for s in (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)]
        strip = np.concatenate([np.concatenate(list(column.numpy())) for column in picked], axis=1)
        Image.fromarray(strip).resize((strip.shape[1] * 2, strip.shape[0] * 2), 0).save(out / f"{key}.png")


def play_real(action: int, games: int) -> float:
    """Return the mean return of the real game while a key is held."""
    env = WrappedEnv("ALE/Freeway-v5", {"repeat_action_probability": 0.0}, 64, action_repeat=4)
    total = 0.0
    for seed in range(games):
        env.reset(seed)
        done = False
        while not done:
            outcome = env.step(np.int64(action))
            total, done = total + float(outcome.reward), outcome.terminated or outcome.truncated
    env.close()
    return total / games


def chicken_rows(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Find the player's chicken: uint8 [..., h, w, 3] -> its row [...], NaN where it is not seen."""
    red, green, blue = np.moveaxis(frames[..., CHICKEN_COLUMNS, :].astype(int), -1, 0)
    yellow = (red > 200) & (green > 200) & (red - blue > 85)
    yellow[..., CENTER_LINE, :] = False
    rows = np.arange(yellow.shape[-2])[:, None]
    count = yellow.sum(axis=(-2, -1))
    return np.where(count > 0, (yellow * rows).sum(axis=(-2, -1)) / np.maximum(count, 1), np.nan)


def measure_obedience(bundle: str, recording: str, context: int, tries: int, steps: int) -> None:
    """Print in how many tries the chicken is higher after up than after down from the same frames."""
    world = vwm.load(bundle)
    games = read_windows(recording, context, steps)
    before = chicken_rows(games.frames[:, context - 1].numpy())
    chosen = np.flatnonzero((before > 14) & (before < 50))[:tries]  # neither side is near
    games = Games(*(column[torch.from_numpy(chosen)] for column in games))
    rows = {}
    for key in ("up", "down"):
        actions = torch.full((len(chosen), steps), KEYS[key])
        rows[key] = chicken_rows(roll_out(world, games, actions, context)[0][:, -1].numpy())
    seen = ~np.isnan(rows["up"]) & ~np.isnan(rows["down"])
    right = rows["up"][seen] < rows["down"][seen]
    print(
        f"up is above down after {steps} steps in {right.sum()} of {len(chosen)} tries ({len(chosen) - seen.sum()} "
        f"with an invisible chicken); by {np.mean(rows['down'][seen] - rows['up'][seen]):.1f} pixels on average"
    )


def main() -> None:
    """Run one of the commands of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    outcomes = commands.add_parser("outcomes", help="compare rewards and ends with recorded ones")
    outcomes.add_argument("bundle")
    outcomes.add_argument("recordings", nargs="+")
    outcomes.add_argument("--horizon", type=int, default=16)
    play = commands.add_parser("play", help="hold each key from every start")
    play.add_argument("bundle")
    play.add_argument("out", type=Path)
    play.add_argument("--seconds", type=float, default=60)
    play.add_argument("--repeats", type=int, default=1)
    obey = commands.add_parser("obey", help="roll out up and down from the same frames")
    obey.add_argument("bundle")
    obey.add_argument("recording")
    obey.add_argument("--tries", type=int, default=200)
    obey.add_argument("--steps", type=int, default=8)
    for command in (outcomes, obey):
        command.add_argument("--context", type=int, default=16)
    options = parser.parse_args()
    if options.command == "outcomes":
        measure_outcomes(options.bundle, options.recordings, options.context, options.horizon)
    elif options.command == "play":
        measure_play(options.bundle, options.out, options.seconds, options.repeats)
    else:
        measure_obedience(options.bundle, options.recording, options.context, options.tries, options.steps)


if __name__ == "__main__":
    main()
