"""`vwm record`: play an environment and write frames, actions and rewards as shards.

A shard is the unit of work. Its content depends on the settings and its number alone, so any number of workers writes
the same bytes, and an interrupted recording continues with the missing shards.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.atomic_files import atomic_write_text, remove_folder_leftovers
from vwm.core.checks import check_not_negative, check_positive
from vwm.core.command_output import format_count, format_training, print_output, progress_bar
from vwm.core.folder_lock import lock_folder
from vwm.core.json_files import read_json_object
from vwm.core.limits import MAX_FRAME_SIDE
from vwm.data.episode import Episode
from vwm.data.shard_index import is_shard_complete
from vwm.data.shards import ShardWriter
from vwm.data.workers import run_jobs
from vwm.envs.behavior_policies import BEHAVIOR_POLICIES, RandomPolicy
from vwm.envs.env_ids import check_env_id
from vwm.envs.recording_envs import RecordingEnv, ShardAssignment, make_recording_env

RECORDING_MANIFEST = "recording.json"


@dataclass(frozen=True)
class RecordingConfig:
    """Everything that determines the content of a recording; saved as ``recording.json`` next to the shards."""

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
        check_not_negative(skip_first_frames=self.skip_first_frames, seed=self.seed)
        if self.size > MAX_FRAME_SIDE:
            raise ValueError(f"size must be at most {MAX_FRAME_SIDE}, got {self.size}")
        if self.max_episode_frames < 2:
            raise ValueError(
                f"max_episode_frames must be 2 or more (one frame shows no motion), got {self.max_episode_frames}"
            )
        if self.policy not in BEHAVIOR_POLICIES:
            raise ValueError(f"policy {self.policy!r} is not known; there are {', '.join(BEHAVIOR_POLICIES)}")

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
    policy: Literal["random", "sticky", "mixed", "road", "keys", "ball", "push"] = "mixed",
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
    """Record an environment into shards. Run it again to continue an interrupted recording.

    Args:
        env: procgen:coinrun (or another Procgen game), ALE/Pong-v5, vwm/World-v0 with a bundle, or any Gymnasium id.
        out: folder for the shards.
        frames: frames to record.
        size: side of the frames, in pixels.
        policy: random (every action drawn independently), sticky (mostly repeats the last action), mixed (segments
            of sticky play, each with other preferred actions), road (drives CarRacing, and leaves the road on
            purpose), keys (drives CarRacing, and holds keys for seconds as people do), ball (plays Atari's Pong), or
            push (pushes the block of vwm/PushT-v0).
        workers: processes that record; 0 records in this one. Their number does not affect the recording.
        frames_per_shard: frames per shard; validation holds out whole shards.
        seed: of the environment and the policy.
        frame_skip: steps of the environment for which an action is held; only the last one's frame is kept.
        max_episode_frames: frames after which an episode is cut; the next one continues there.
        prefer: weights of discrete actions, e.g. '{7: 4, 8: 3}'; actions not named have weight 1.
        env_options: arguments of the environment, e.g. '{num_levels: 500, distribution_mode: easy}'.
        state: also record the environment's state and its names: Atari RAM, Procgen's player, MuJoCo, CarRacing's
            car, vector observations, or what an environment of your own states (``state``, ``state_names``).
        skip_first_frames: frames at the start of every episode that are played but not kept, where an episode begins
            with something else (CarRacing zooms in for its first second).

    Raises:
        ValueError: a setting is out of range, or ``out`` holds a recording with other settings.
        ImportError: the environment's package is not installed.
    """
    config = RecordingConfig(
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
    check_env_id(env, env_options)  # before processes are started
    with lock_folder(out, "recording"):
        remove_folder_leftovers(out)
        _write_or_check_config(out, config)
        _record_missing_shards(config, out, workers)


def _record_missing_shards(config: RecordingConfig, out: Path, workers: int) -> None:
    todo = [i for i in range(config.shards) if not is_shard_complete(_shard_path(out, i))]
    if not todo:
        _print_recording(out, f"{format_count(config.shards, 'shard')}, complete. Nothing to do.")
        return
    if len(todo) < config.shards:
        print(f"{out}: {config.shards - len(todo)} of {config.shards} shards exist, recording the others")
    began, tally = time.monotonic(), RecordingCounts()
    with progress_bar(total=sum(map(config.frames_in, todo)), unit="frame", desc=config.env) as bar:
        for shard, part in run_jobs(functools.partial(record_shard, config, out), todo, workers):
            tally += part
            bar.update(config.frames_in(shard))
    seconds = time.monotonic() - began
    dropped = f"; {tally.dropped} episodes shorter than 2 frames were dropped" if tally.dropped else ""
    _print_recording(
        out,
        f"{tally.frames} frames in {format_count(tally.episodes, 'episode')}, {format_count(len(todo), 'shard')}, "
        f"{tally.frames / seconds:.0f} frames/s{dropped}",
    )


def _print_recording(out: Path, contents: str) -> None:
    print_output(out, contents, format_training(out, out.name))


def _write_or_check_config(out: Path, config: RecordingConfig) -> None:
    """Write the settings into a new folder, or check that those found there are the same.

    Raises:
        ValueError: the settings differ, or there are shards without settings.
    """
    expected = json.loads(json.dumps(asdict(config)))
    path = out / RECORDING_MANIFEST
    if path.exists() and any(out.glob("*.tar")):  # settings without shards may change
        found = {
            "skip_first_frames": 0,
            **read_json_object(path),
        }  # older recordings do not have skip_first_frames
        if found != expected:
            differing = [k for k in expected if found.get(k) != expected[k]]
            changes = ", ".join(f"{k} was {found.get(k)!r} and is now {expected[k]!r}" for k in differing)
            raise ValueError(f"{path}: the recording there has other settings ({changes}). Choose another folder.")
        return
    if not path.exists() and any(out.glob("*.tar")):
        raise ValueError(
            f"{out}: has shards but no {RECORDING_MANIFEST}, so it is no recording. Choose another folder."
        )
    atomic_write_text(path, json.dumps(expected, indent=2) + "\n")


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:06d}.tar"


def record_shard(config: RecordingConfig, out: Path, shard: int) -> RecordingCounts:
    """Play and write one shard, a pure function of ``config`` and ``shard``."""
    rng = np.random.default_rng([config.seed, shard])
    assignment = ShardAssignment(shard, config.shards, seed=int(rng.integers(2**31 - 1)))
    env = make_recording_env(
        config.env, assignment, config.size, config.frame_skip, config.env_options, state=config.state
    )
    counts = RecordingCounts()
    with contextlib.closing(env), ShardWriter(_shard_path(out, shard)) as writer:
        policy = BEHAVIOR_POLICIES[config.policy](env.actions, env.count, rng, config.prefer)
        meta: dict[str, Any] = {
            "fps": env.fps,
            "source": config.env,
            "policy": config.policy,
            "action_names": list(env.actions.names),
        }
        if env.actions.count == 0:
            low, high = env.actions.low.tolist(), env.actions.high.tolist()
            meta |= {"action_low": low, "action_high": high, "action_rest": env.actions.rest}
        if env.actions.composite is not None:
            meta["action_parts"] = [part.to_json() for part in env.actions.composite.parts]
        if env.state_names:
            meta["state_names"] = list(env.state_names)
        for episode in collect_episodes(
            env, policy, config.frames_in(shard), config.max_episode_frames, meta, config.skip_first_frames
        ):
            if len(episode) < 2:
                counts.dropped += 1
                continue
            writer.write(f"{shard:06d}-{counts.episodes:05d}", episode)
            counts += RecordingCounts(len(episode), 1)
    return counts


@dataclass
class _EpisodeBuffer:
    """The unfinished episode of one copy."""

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
    env: RecordingEnv,
    policy: RandomPolicy,
    frames: int,
    max_episode_frames: int,
    meta: dict[str, Any],
    skip_first_frames: int,
) -> Iterator[Episode]:
    """Play until ``frames`` frames were kept, over all copies, and yield every episode as it ends.

    An episode that the end of the recording or ``max_episode_frames`` cuts is truncated. The first
    ``skip_first_frames`` frames of every episode of the environment are not kept.

    Raises:
        ValueError: no episode is longer than ``skip_first_frames``.
    """
    frames_left = np.full(env.count, frames // env.count) + (np.arange(env.count) < frames % env.count)
    buffers = [_EpisodeBuffer() for _ in range(env.count)]
    skips_left = np.full(env.count, skip_first_frames)
    ended_without_frames = 0
    time_step = env.reset()
    while frames_left.any():
        frame, first = time_step.observation.numpy(), time_step.is_first.numpy()
        state = env.read_state()
        actions = policy.act(first, frame)
        time_step = env.step(torch.as_tensor(actions))
        ended = time_step.is_last.numpy()
        kept = np.flatnonzero((skips_left == 0) & (frames_left > 0))
        for copy in kept:
            buffer = buffers[copy]
            buffer.frames.append(frame[copy])
            buffer.actions.append(actions[copy])
            buffer.rewards.append(float(time_step.reward[copy]))
            if state is not None:
                buffer.states.append(state[copy])
            frames_left[copy] -= 1
            if ended[copy] or len(buffer.frames) == max_episode_frames or frames_left[copy] == 0:
                yield buffer.finish(bool(time_step.is_terminal[copy]), meta)
                buffers[copy] = _EpisodeBuffer()
        ended_without_frames = 0 if len(kept) else ended_without_frames + int(ended.sum())
        if ended_without_frames >= 100:
            raise ValueError(
                f"{ended_without_frames} episodes in a row ended within skip_first_frames={skip_first_frames} frames"
            )
        skips_left = np.where(ended, skip_first_frames, np.maximum(skips_left - 1, 0))
