"""`vwm record`: play a game and keep what was seen, done and earned, as shards.

A shard is the unit of work. What it holds depends on the settings and its number alone, so any number of workers
writes the same bytes, and an interrupted recording goes on with the shards that are missing.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vwm.data.counts import check_positive
from vwm.data.environments import Environment, Piece, open_environment, opened
from vwm.data.episode import Episode
from vwm.data.policies import POLICIES, RandomPolicy
from vwm.data.shards import ShardWriter
from vwm.data.workers import run_jobs

MANIFEST = "recording.json"


@dataclass(frozen=True)
class Recording:
    """Everything that decides what a recording holds; kept as ``recording.json`` beside the shards."""

    env: str
    frames: int
    size: int
    policy: str
    shard_frames: int
    seed: int
    frame_skip: int
    max_episode: int
    prefer: dict[int, float]
    env_options: dict[str, Any]
    state: bool
    skip_start: int

    def __post_init__(self) -> None:
        check_positive(frames=self.frames, size=self.size, shard_frames=self.shard_frames, frame_skip=self.frame_skip)
        if self.skip_start < 0:
            raise ValueError(f"skip_start must be 0 or more, got {self.skip_start}")
        if self.max_episode < 2:
            raise ValueError(f"max_episode must be 2 or more (one frame shows no motion), got {self.max_episode}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is not known; there are {', '.join(POLICIES)}")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.frames // self.shard_frames)

    def frames_in(self, shard: int) -> int:
        """Frames to play for one shard."""
        return min(self.shard_frames, self.frames - shard * self.shard_frames)


@dataclass
class Tally:
    """What was written and what was dropped; adds up over shards."""

    frames: int = 0
    episodes: int = 0
    dropped: int = 0

    def __iadd__(self, other: Tally) -> Self:
        self.frames += other.frames
        self.episodes += other.episodes
        self.dropped += other.dropped
        return self


def record(
    env: str,
    out: Path,
    frames: int = 50_000,
    size: int = 64,
    policy: Literal["random", "sticky", "mixed", "road"] = "mixed",
    workers: int = 2,
    shard_frames: int = 5_000,
    seed: int = 0,
    frame_skip: int = 1,
    max_episode: int = 1_000,
    prefer: dict[int, float] | None = None,
    env_options: dict[str, Any] | None = None,
    state: bool = False,
    skip_start: int = 0,
) -> None:
    """Record a game into shards. Run it again to go on with an interrupted recording.

    Args:
        env: procgen:coinrun (or another Procgen game), ALE/Pong-v5, or any Gymnasium id.
        out: folder for the shards.
        frames: frames to record.
        size: side of the frames, in pixels.
        policy: who plays: random (every action drawn anew), sticky (mostly repeats the last action), mixed (pieces
            of sticky play, each leaning to other actions), or road (drives CarRacing, and strays on purpose).
        workers: processes that record; 0 records in this one. The number changes nothing in what is recorded.
        shard_frames: frames a shard; shards are also what is held out for validation.
        seed: of the game and the policy.
        frame_skip: steps of the game that an action is held for; only the last one's frame is kept.
        max_episode: frames after which an episode is cut; the game goes on in the next one.
        prefer: weights of discrete actions, e.g. '{7: 4, 8: 3}'; actions not named have weight 1.
        env_options: options of the game, e.g. '{num_levels: 500, distribution_mode: easy}'.
        state: also record the game's own state with its names: Atari RAM, Procgen's player, MuJoCo, CarRacing's
            car, vector observations, or what an environment of your own tells (``state``, ``state_names``).
        skip_start: frames at the start of every episode that are played but not kept, where the game begins with
            something else (CarRacing zooms in for its first second).

    Raises:
        ValueError: a setting makes no sense, or ``out`` holds a recording with other settings.
        ImportError: the game's package is not installed.
    """
    plan = Recording(
        env=env,
        frames=frames,
        size=size,
        policy=policy,
        shard_frames=shard_frames,
        seed=seed,
        frame_skip=frame_skip,
        max_episode=max_episode,
        prefer=prefer or {},
        env_options=env_options or {},
        state=state,
        skip_start=skip_start,
    )
    from tqdm import tqdm

    _claim_folder(out, plan)
    todo = [i for i in range(plan.shards) if not _shard_path(out, i).exists()]
    if not todo:
        print(f"{out} is complete: {plan.shards} shards. Nothing to do.")
        return
    if len(todo) < plan.shards:
        print(f"{out}: {plan.shards - len(todo)} of {plan.shards} shards are there, going on with the others")
    began, tally = time.monotonic(), Tally()
    with tqdm(total=sum(map(plan.frames_in, todo)), unit="frame", desc=env, disable=None) as bar:
        for shard, part in run_jobs(functools.partial(record_shard, plan, out), todo, workers):
            tally += part
            bar.update(plan.frames_in(shard))
    seconds = time.monotonic() - began
    print(
        f"{out}: {tally.frames} frames in {tally.episodes} episodes, {len(todo)} shards, "
        f"{tally.frames / seconds:.0f} frames/s"
        + (f"; {tally.dropped} episodes shorter than 2 frames were dropped" if tally.dropped else "")
    )


def _claim_folder(out: Path, plan: Recording) -> None:
    """Write the settings into a new folder, or check that those found there are the same.

    Raises:
        ValueError: other settings, or shards of unknown origin.
    """
    wanted = json.loads(json.dumps(asdict(plan)))
    path = out / MANIFEST
    if path.exists() and any(out.glob("*.tar")):  # settings under which nothing was recorded bind nobody
        found = {"skip_start": 0, **json.loads(path.read_text())}  # older recordings know no skip_start
        if found != wanted:
            differing = [k for k in wanted if found.get(k) != wanted[k]]
            changes = ", ".join(f"{k} was {found.get(k)!r} and is now {wanted[k]!r}" for k in differing)
            raise ValueError(f"{path}: the recording there has other settings ({changes}). Choose another folder.")
        return
    if not path.exists() and any(out.glob("*.tar")):
        raise ValueError(f"{out}: has shards but no {MANIFEST}, so it is no recording. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(wanted, indent=2) + "\n")
    aside.replace(path)


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:06d}.tar"


def record_shard(plan: Recording, out: Path, shard: int) -> Tally:
    """Play and write one shard; what it holds is a pure function of ``plan`` and ``shard``."""
    rng = np.random.default_rng([plan.seed, shard])
    piece = Piece(shard, plan.shards, seed=int(rng.integers(2**31 - 1)))
    game = open_environment(plan.env, piece, plan.size, plan.frame_skip, plan.env_options, plan.state)
    tally = Tally()
    with opened(game), ShardWriter(_shard_path(out, shard)) as writer:
        policy = POLICIES[plan.policy](game.actions, game.lanes, rng, plan.prefer)
        meta: dict[str, Any] = {
            "fps": game.fps,
            "source": plan.env,
            "policy": plan.policy,
            "action_names": list(game.actions.names),
        }
        if game.actions.count == 0:
            low, high = game.actions.low.tolist(), game.actions.high.tolist()
            meta |= {"action_low": low, "action_high": high, "action_rest": game.actions.rest}
        if game.state_names:
            meta["state_names"] = list(game.state_names)
        for episode in play(game, policy, plan.frames_in(shard), plan.max_episode, meta, plan.skip_start):
            if len(episode) < 2:
                tally.dropped += 1
                continue
            writer.write(f"{shard:06d}-{tally.episodes:05d}", episode)
            tally += Tally(len(episode), 1)
    return tally


@dataclass
class _Take:
    """The episode that a lane is in."""

    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    states: list[NDArray[np.float32]] = field(default_factory=list)

    def finish(self, terminated: bool, meta: dict[str, Any]) -> Episode:
        actions = np.stack(self.actions)
        return Episode(
            frames=np.stack(self.frames),
            actions=actions.astype(np.int64 if actions.ndim == 1 else np.float32),
            rewards=np.array(self.rewards, np.float32),
            state=np.stack(self.states) if self.states else None,
            terminated=terminated,
            truncated=not terminated,
            meta=meta,
        )


def play(
    game: Environment, policy: RandomPolicy, frames: int, max_episode: int, meta: dict[str, Any], skip_start: int
) -> Iterator[Episode]:
    """Play until ``frames`` frames were kept, over all lanes, and yield every episode as it ends.

    An episode that the end of the recording or ``max_episode`` cuts is truncated. The first ``skip_start`` frames of
    every episode of the game are not kept.

    Raises:
        ValueError: no episode of the game outlasts ``skip_start``.
    """
    left = np.full(game.lanes, frames // game.lanes) + (np.arange(game.lanes) < frames % game.lanes)
    takes = [_Take() for _ in range(game.lanes)]
    first = np.ones(game.lanes, bool)
    skip = np.full(game.lanes, skip_start)
    in_vain = 0
    while left.any():
        seen = game.observe()
        actions = policy.act(first, seen.frames)
        outcome = game.act(actions)
        first = outcome.terminated | outcome.truncated
        kept = np.flatnonzero((skip == 0) & (left > 0))
        for lane in kept:
            take = takes[lane]
            take.frames.append(seen.frames[lane])
            take.actions.append(actions[lane])
            take.rewards.append(float(outcome.rewards[lane]))
            if seen.state is not None:
                take.states.append(seen.state[lane])
            left[lane] -= 1
            if first[lane] or len(take.frames) == max_episode or left[lane] == 0:
                yield take.finish(bool(outcome.terminated[lane]), meta)
                takes[lane] = _Take()
        in_vain = 0 if len(kept) else in_vain + int(first.sum())
        if in_vain >= 100:
            raise ValueError(f"{in_vain} episodes in a row ended within skip_start={skip_start} frames")
        skip = np.where(first, skip_start, np.maximum(skip - 1, 0))
