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

from vwm.core.atomic_files import atomic_write_text
from vwm.core.checks import check_positive
from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.data.workers import run_jobs
from vwm.envs.behavior_policies import BEHAVIOUR_POLICIES, RandomPolicy
from vwm.envs.recording_envs import RecordingEnv, ShardAssignment, closing_env, make_recording_env

RECORDING_MANIFEST = "recording.json"


@dataclass(frozen=True)
class RecordingConfig:
    """Everything that decides what a recording holds; kept as ``recording.json`` beside the shards."""

    env: str
    frames: int
    size: int
    policy: str
    frames_per_shard: int
    seed: int
    frame_skip: int
    max_episode_frames: int
    prefer: dict[int, float]
    env_options: dict[str, Any]
    state: bool
    skip_first_frames: int

    def __post_init__(self) -> None:
        check_positive(
            frames=self.frames, size=self.size, frames_per_shard=self.frames_per_shard, frame_skip=self.frame_skip
        )
        if self.skip_first_frames < 0:
            raise ValueError(f"skip_first_frames must be 0 or more, got {self.skip_first_frames}")
        if self.max_episode_frames < 2:
            raise ValueError(
                f"max_episode_frames must be 2 or more (one frame shows no motion), got {self.max_episode_frames}"
            )
        if self.policy not in BEHAVIOUR_POLICIES:
            raise ValueError(f"policy {self.policy!r} is not known; there are {', '.join(BEHAVIOUR_POLICIES)}")

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.frames // self.frames_per_shard)

    def frames_in(self, shard: int) -> int:
        """Frames to play for one shard."""
        return min(self.frames_per_shard, self.frames - shard * self.frames_per_shard)


@dataclass
class RecordingCounts:
    """What was written and what was dropped; adds up over shards."""

    frames: int = 0
    episodes: int = 0
    dropped: int = 0

    def __iadd__(self, other: RecordingCounts) -> Self:
        self.frames += other.frames
        self.episodes += other.episodes
        self.dropped += other.dropped
        return self


def record_dataset(
    env: str,
    out: Path,
    frames: int = 50_000,
    size: int = 64,
    policy: Literal["random", "sticky", "mixed", "road"] = "mixed",
    workers: int = 2,
    frames_per_shard: int = 5_000,
    seed: int = 0,
    frame_skip: int = 1,
    max_episode_frames: int = 1_000,
    prefer: dict[int, float] | None = None,
    env_options: dict[str, Any] | None = None,
    state: bool = False,
    skip_first_frames: int = 0,
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
        frames_per_shard: frames a shard; shards are also what is held out for validation.
        seed: of the game and the policy.
        frame_skip: steps of the game that an action is held for; only the last one's frame is kept.
        max_episode_frames: frames after which an episode is cut; the game goes on in the next one.
        prefer: weights of discrete actions, e.g. '{7: 4, 8: 3}'; actions not named have weight 1.
        env_options: options of the game, e.g. '{num_levels: 500, distribution_mode: easy}'.
        state: also record the game's own state with its names: Atari RAM, Procgen's player, MuJoCo, CarRacing's
            car, vector observations, or what an environment of your own tells (``state``, ``state_names``).
        skip_first_frames: frames at the start of every episode that are played but not kept, where the game begins with
            something else (CarRacing zooms in for its first second).

    Raises:
        ValueError: a setting makes no sense, or ``out`` holds a recording with other settings.
        ImportError: the game's package is not installed.
    """
    plan = RecordingConfig(
        env=env,
        frames=frames,
        size=size,
        policy=policy,
        frames_per_shard=frames_per_shard,
        seed=seed,
        frame_skip=frame_skip,
        max_episode_frames=max_episode_frames,
        prefer=prefer or {},
        env_options=env_options or {},
        state=state,
        skip_first_frames=skip_first_frames,
    )
    from tqdm import tqdm

    _write_or_check_config(out, plan)
    todo = [i for i in range(plan.shards) if not _shard_path(out, i).exists()]
    if not todo:
        print(f"{out} is complete: {plan.shards} shards. Nothing to do.")
        return
    if len(todo) < plan.shards:
        print(f"{out}: {plan.shards - len(todo)} of {plan.shards} shards are there, going on with the others")
    began, tally = time.monotonic(), RecordingCounts()
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


def _write_or_check_config(out: Path, plan: RecordingConfig) -> None:
    """Write the settings into a new folder, or check that those found there are the same.

    Raises:
        ValueError: other settings, or shards of unknown origin.
    """
    wanted = json.loads(json.dumps(asdict(plan)))
    path = out / RECORDING_MANIFEST
    if path.exists() and any(out.glob("*.tar")):  # settings under which nothing was recorded bind nobody
        found = {"skip_first_frames": 0, **json.loads(path.read_text())}  # older recordings know no skip_first_frames
        if found != wanted:
            differing = [k for k in wanted if found.get(k) != wanted[k]]
            changes = ", ".join(f"{k} was {found.get(k)!r} and is now {wanted[k]!r}" for k in differing)
            raise ValueError(f"{path}: the recording there has other settings ({changes}). Choose another folder.")
        return
    if not path.exists() and any(out.glob("*.tar")):
        raise ValueError(
            f"{out}: has shards but no {RECORDING_MANIFEST}, so it is no recording. Choose another folder."
        )
    atomic_write_text(path, json.dumps(wanted, indent=2) + "\n")


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:06d}.tar"


def record_shard(plan: RecordingConfig, out: Path, shard: int) -> RecordingCounts:
    """Play and write one shard; what it holds is a pure function of ``plan`` and ``shard``."""
    rng = np.random.default_rng([plan.seed, shard])
    piece = ShardAssignment(shard, plan.shards, seed=int(rng.integers(2**31 - 1)))
    game = make_recording_env(plan.env, piece, plan.size, plan.frame_skip, plan.env_options, plan.state)
    tally = RecordingCounts()
    with closing_env(game), ShardWriter(_shard_path(out, shard)) as writer:
        policy = BEHAVIOUR_POLICIES[plan.policy](game.actions, game.lanes, rng, plan.prefer)
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
        for episode in collect_episodes(
            game, policy, plan.frames_in(shard), plan.max_episode_frames, meta, plan.skip_first_frames
        ):
            if len(episode) < 2:
                tally.dropped += 1
                continue
            writer.write(f"{shard:06d}-{tally.episodes:05d}", episode)
            tally += RecordingCounts(len(episode), 1)
    return tally


@dataclass
class _EpisodeBuffer:
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


def collect_episodes(
    game: RecordingEnv,
    policy: RandomPolicy,
    frames: int,
    max_episode_frames: int,
    meta: dict[str, Any],
    skip_first_frames: int,
) -> Iterator[Episode]:
    """Play until ``frames`` frames were kept, over all lanes, and yield every episode as it ends.

    An episode that the end of the recording or ``max_episode_frames`` cuts is truncated. The first
    ``skip_first_frames`` frames of
    every episode of the game are not kept.

    Raises:
        ValueError: no episode of the game outlasts ``skip_first_frames``.
    """
    left = np.full(game.lanes, frames // game.lanes) + (np.arange(game.lanes) < frames % game.lanes)
    takes = [_EpisodeBuffer() for _ in range(game.lanes)]
    first = np.ones(game.lanes, bool)
    skip = np.full(game.lanes, skip_first_frames)
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
            if first[lane] or len(take.frames) == max_episode_frames or left[lane] == 0:
                yield take.finish(bool(outcome.terminated[lane]), meta)
                takes[lane] = _EpisodeBuffer()
        in_vain = 0 if len(kept) else in_vain + int(first.sum())
        if in_vain >= 100:
            raise ValueError(f"{in_vain} episodes in a row ended within skip_first_frames={skip_first_frames} frames")
        skip = np.where(first, skip_first_frames, np.maximum(skip - 1, 0))
