"""Procgen games: as a Gymnasium environment for agents, and as a batch that ``vwm record procgen:...`` plays."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.spaces import ObservationSpace
from vwm.core.suggestions import suggest
from vwm.envs import procgen_state
from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.env_ids import MAX_ENV_SEED
from vwm.envs.recording_envs import RecordingEnv, ShardAssignment, autoreset_time_step
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.envs.wrapped_env import resize_frame

PROCGEN_NUM_ENVS = 4
"""Copies that one shard is recorded from."""
PROCGEN_FPS = 15.0
PROCGEN_MAX_STEPS = 1000
"""Steps after which Procgen stops an episode that did not end by itself."""
PROCGEN_NOOP = 4


class ProcgenEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """One copy of a game; observations are uint8 [64, 64, 3], actions the 15 combinations of keys.

    Every episode is played in an instance of its own, which opens in a millisecond, so that its level and all its
    random numbers are a function of the seed given to ``reset`` (or drawn from the last one given). Procgen shows the
    first image of the next episode where one ends; the last image of an episode is therefore shown twice.

    Args:
        game: such as ``coinrun``.
        render_mode: ``rgb_array`` or None; both render the observation.
        **options: of ``ProcgenGym3Env``: ``num_levels``, ``start_level``, ``distribution_mode``, ...

    Raises:
        ImportError: Procgen is not installed.
        ValueError: there is no such game, or it does not take an option.
    """

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": PROCGEN_FPS}
        self.render_mode = render_mode
        self._name = game
        self._options = options
        self._open(seed=0)
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._game.combos))

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions: the keys that each holds down."""
        return list(_action_names(self._game))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._game.close()
        self._open(int(self.np_random.integers(MAX_ENV_SEED)))
        return self._image, {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one action; after the end of an episode, ``reset`` must be called."""
        self._game.act(np.array([action]))
        self._steps += 1
        reward, observation, first = self._game.observe()
        ended = bool(first[0])
        out_of_time = self._steps >= PROCGEN_MAX_STEPS
        if not ended:
            self._image = observation["rgb"][0].copy()
        return self._image, float(reward[0]), ended and not out_of_time, ended and out_of_time, {}

    def render(self) -> NDArray[np.uint8]:
        """Return the observation."""
        return self._image

    def close(self) -> None:
        """Release the game."""
        self._game.close()

    def _open(self, seed: int) -> None:
        self._game = open_procgen(self._name, 1, {**self._options, "rand_seed": seed})
        self._steps = 0
        _, observation, _ = self._game.observe()
        self._image = observation["rgb"][0].copy()


class ProcgenRecordingEnv(RecordingEnv):
    """A batch of a Procgen game; options are those of ``ProcgenGym3Env``.

    ``num_levels`` levels from ``start_level`` on are divided among the shards, so that no two shards share a level
    (as long as there are at least as many levels as shards). ``num_levels=0`` draws from all levels.
    """

    def __init__(
        self, game: str, shard: ShardAssignment, size: int, frame_skip: int, options: Mapping[str, Any], state: bool
    ) -> None:
        if state:
            procgen_state.check_procgen_options(game, dict(options))
        start, count = partition_levels(int(options.get("start_level", 0)), int(options.get("num_levels", 0)), shard)
        shard_options = {"start_level": start, "num_levels": count, "rand_seed": shard.seed}
        if options.get("distribution_mode") == "exploration":  # one fixed level, which cannot be chosen
            del shard_options["start_level"], shard_options["num_levels"]
        self._game = game
        self._options = {**options, **shard_options}
        self._size = size
        self._skip = frame_skip
        self._open()
        self.count = PROCGEN_NUM_ENVS
        self.fps = PROCGEN_FPS / frame_skip
        self.actions = EnvActionSpec.discrete(_action_names(self._env))
        self.spaces = EnvSpaces(ObservationSpace.of_shape((size, size, 3)), self.actions.space)
        self.state_names = procgen_state.procgen_state_names(game) if state else ()

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        self.close()
        self._open()
        no_flags = np.zeros(self.count, bool)
        return autoreset_time_step(self._frames(), np.zeros(self.count), ~no_flags, no_flags, no_flags)

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        actions = action.numpy()
        rewards = np.zeros(self.count, np.float32)
        terminated = np.zeros(self.count, bool)
        truncated = np.zeros(self.count, bool)
        for _ in range(self._skip):
            ended = terminated | truncated
            # A copy whose episode ended waits: the next episode gets neither its action nor a reward in this step.
            self._env.act(np.where(ended, PROCGEN_NOOP, actions))
            reward, _, first = self._env.observe()
            rewards += np.where(ended, 0, reward)
            self._steps += 1
            out_of_time = self._steps >= PROCGEN_MAX_STEPS
            terminated |= first & ~out_of_time & ~ended
            truncated |= first & out_of_time & ~ended
            self._steps[first] = 0
        ended = terminated | truncated
        return autoreset_time_step(self._frames(), rewards, ended, ended, terminated)

    def read_state(self) -> NDArray[np.float32] | None:
        """See ``RecordingEnv.read_state``."""
        if not self.state_names:
            return None
        saved = self._env.callmethod("get_state")
        return np.stack([procgen_state.read_procgen_state(self._game, data) for data in saved])

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        self._env.close()

    def _open(self) -> None:
        self._env = open_procgen(self._game, PROCGEN_NUM_ENVS, self._options)
        self._steps = np.zeros(PROCGEN_NUM_ENVS, np.int64)

    def _frames(self) -> NDArray[np.uint8]:
        _, observation, _ = self._env.observe()
        return np.stack([resize_frame(frame, self._size, self._size) for frame in observation["rgb"]])


def partition_levels(start: int, count: int, shard: ShardAssignment) -> tuple[int, int]:
    """Return (first level, number of levels) of one shard, out of ``count`` levels from ``start`` on.

    Shards get disjoint, almost equal ranges; with fewer levels than shards, one level each, in turn.
    """
    if count == 0:
        return start, 0
    if count < shard.total:
        return start + shard.number % count, 1
    first, end = (count * i // shard.total for i in (shard.number, shard.number + 1))
    return start + first, end - first


def check_procgen_game(game: str) -> None:
    """Raise ValueError where there is no such game, ImportError where Procgen is not installed."""
    _, games = _import_procgen()
    if game not in games:
        raise ValueError(f"procgen:{game}: there is no such game{suggest(game, games)}, only {', '.join(games)}")


def open_procgen(game: str, copies: int, options: Mapping[str, Any]) -> Any:
    """Open copies of a game in Procgen's own interface (gym3).

    Raises:
        ImportError: Procgen is not installed.
        ValueError: there is no such game, or it does not take an option.
    """
    make, _ = _import_procgen()
    check_procgen_game(game)  # Procgen itself would end the process
    try:
        return make(num=copies, env_name=game, **{**options, "num_threads": 0})
    except (TypeError, AssertionError) as error:
        raise ValueError(f"procgen:{game} with options {dict(options)}: {error}") from error


def _import_procgen() -> tuple[Any, list[str]]:
    """Return the constructor of Procgen's games, and their names."""
    # Procgen imports the old gym, which prints a deprecation notice on every import that users cannot act on.
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from procgen.env import ENV_NAMES, ProcgenGym3Env
    except ImportError as error:
        raise ImportError(
            f"Procgen is not installed ({error}): pip install -e '.[procgen]' in the clone "
            "(its wheels need Python below 3.12)"
        ) from error
    return ProcgenGym3Env, ENV_NAMES


def _action_names(game: Any) -> tuple[str, ...]:
    return tuple("+".join(keys) or "NOOP" for keys in game.combos)
