"""Opens games for recording, each behind the same few calls on several lanes (copies) at once.

The calls keep the alignment rule of :mod:`vwm.data.episode`: what ``observe`` shows is ``frames[t]``, what is then
passed to ``act`` is ``actions[t]``, and what ``act`` returns is ``rewards[t]``. Where ``act`` says that an episode
ended, the next ``observe`` already shows the first frame of the next one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vwm.envs import procgen_state
from vwm.envs.state_readers import make_state_reader

MAX_ENV_SEED = 2**31 - 1
"""No game is given one so large: Crafter and Procgen take 31 bits."""
PROCGEN_NUM_ENVS = 4
PROCGEN_FPS = 15.0
PROCGEN_MAX_STEPS = 1000
"""Steps after which a Procgen game stops an episode that did not end by itself."""
PROCGEN_NOOP = 4
ALE_FPS = 60.0
CONTINUOUS_ACTION_NAMES = {
    "CarRacing": ("steer", "gas", "brake"),
    "Pendulum": ("torque",),
    "MountainCarContinuous": ("force",),
    "BipedalWalker": ("left hip", "left knee", "right hip", "right knee"),
    "vwm/TwoRooms": ("right", "down"),
}
"""Names of continuous actions, which Gymnasium's games do not tell."""
BUILT_IN_ENV_MODULES = {"vwm/TwoRooms-v0": "vwm.envs.two_rooms", "vwm/Crafter-v0": "vwm.envs.crafter"}
"""Modules that register the ids of this package's own environments."""
ENV_PACKAGE_EXTRAS = {"crafter": "crafter", "dm_control": "dmc"}
"""What to install for ids that hold these words."""


@dataclass(frozen=True)
class EnvActionSpec:
    """What ``act`` takes.

    Attributes:
        count: number of discrete actions; 0 for continuous ones.
        low, high: float32 [A], what -1 and 1 of each continuous action are in the game's own numbers; empty for
            discrete ones.
        names: one a discrete action or dimension, for people; may be empty.
    """

    count: int
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    names: tuple[str, ...] = ()

    def own(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Continuous actions in the game's own numbers, -1 as ``low`` and 1 as ``high``: float32 [..., A]."""
        return (self.low + (actions + 1) / 2 * (self.high - self.low)).clip(self.low, self.high)

    @property
    def rest(self) -> list[float]:
        """What is 0 in the game's own numbers, or nearest to it: where a lever stands that nobody touches, [A]."""
        zero = np.clip(0, self.low, self.high)
        width = np.maximum(self.high - self.low, np.finfo(np.float32).tiny)
        return [float(value) for value in 2 * (zero - self.low) / width - 1]


class RecordedObservation(NamedTuple):
    """What a player sees now: frames uint8 [n, H, W, 3]; state float32 [n, S], or None where it was not asked for."""

    frames: NDArray[np.uint8]
    state: NDArray[np.float32] | None


class RecordedStep(NamedTuple):
    """What an action earned: rewards float32 [n]; terminated and truncated bool [n]."""

    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class RecordingEnv(ABC):
    """``lanes`` copies of a game, played in step.

    Attributes:
        lanes: how many copies.
        actions: what ``act`` takes.
        fps: frames a second that ``observe`` shows when a person plays.
        state_names: one a number of the state that ``observe`` tells; empty where it was not asked for.
    """

    lanes: int
    actions: EnvActionSpec
    fps: float
    state_names: tuple[str, ...] = ()

    @abstractmethod
    def observe(self) -> RecordedObservation:
        """What every lane shows now."""

    @abstractmethod
    def act(self, actions: NDArray[Any]) -> RecordedStep:
        """Play int64 [n], or float32 [n, A] in [-1, 1]; a lane whose episode ended starts the next one."""

    def close(self) -> None:  # noqa: B027 (most games hold nothing)
        """Free what the game holds."""


@dataclass(frozen=True)
class ShardAssignment:
    """Which part of a recording an environment is opened for; other parts see other levels and other luck.

    Attributes:
        number: of the part, from 0.
        total: number of parts.
        seed: of everything random in this part.
    """

    number: int
    total: int
    seed: int


def make_recording_env(
    env: str,
    piece: ShardAssignment,
    size: int,
    frame_skip: int = 1,
    options: Mapping[str, Any] | None = None,
    state: bool = False,
) -> RecordingEnv:
    """Open a game by its id.

    Args:
        env: ``procgen:coinrun`` (any Procgen game), ``ALE/Pong-v5`` or any other Gymnasium id; ``module:Id-v0``
            imports the module that registers the id.
        piece: which part of a recording it is for.
        size: side of the frames in pixels.
        frame_skip: how many steps of the game every action is held for.
        options: passed to the game's constructor.
        state: also observe the game's own state, where it tells it.

    Raises:
        ImportError: the package of the game is not installed; the message names the extra to install.
        ValueError: no such game, an option that it does not take, a state that it does not tell.
    """
    if frame_skip < 1:
        raise ValueError(f"frame_skip must be 1 or more, got {frame_skip}")
    if env.startswith("procgen:"):
        return ProcgenRecordingEnv(env.removeprefix("procgen:"), piece, size, frame_skip, options or {}, state)
    return GymnasiumRecordingEnv(env, piece, size, frame_skip, options or {}, state)


def resize_frame(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] by averaging areas (repeating pixels where it grows)."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


# --------------------------------------------------------------------------------------------------- Procgen


class ProcgenRecordingEnv(RecordingEnv):
    """A Procgen game; options are those of ``ProcgenGym3Env``.

    ``num_levels`` levels from ``start_level`` on are dealt out to the pieces, so that no two pieces share a level
    (as long as there are at least as many levels as pieces). ``num_levels=0`` draws from all levels there are.
    """

    def __init__(
        self, game: str, piece: ShardAssignment, size: int, frame_skip: int, options: Mapping[str, Any], state: bool
    ) -> None:
        if state:
            procgen_state.check_procgen_options(game, dict(options))
        start, count = partition_levels(int(options.get("start_level", 0)), int(options.get("num_levels", 0)), piece)
        own = {"start_level": start, "num_levels": count, "rand_seed": piece.seed}
        if options.get("distribution_mode") == "exploration":  # one fixed level, which may not be chosen
            del own["start_level"], own["num_levels"]
        self._env = make_procgen(game, PROCGEN_NUM_ENVS, {**options, **own})
        self.lanes = PROCGEN_NUM_ENVS
        self.fps = PROCGEN_FPS / frame_skip
        names = tuple("+".join(keys) or "NOOP" for keys in self._env.combos)
        self.actions = EnvActionSpec(len(names), _no_bounds(), _no_bounds(), names)
        self._game, self._size, self._skip = game, size, frame_skip
        self.state_names = procgen_state.procgen_state_names(game) if state else ()
        self._steps = np.zeros(self.lanes, np.int64)

    def observe(self) -> RecordedObservation:
        _, observation, _ = self._env.observe()
        frames = np.stack([resize_frame(f, self._size, self._size) for f in observation["rgb"]])
        return RecordedObservation(frames, self._state() if self.state_names else None)

    def act(self, actions: NDArray[Any]) -> RecordedStep:
        rewards = np.zeros(self.lanes, np.float32)
        terminated = np.zeros(self.lanes, bool)
        truncated = np.zeros(self.lanes, bool)
        for _ in range(self._skip):
            ended = terminated | truncated
            # A lane that ended waits: neither the old episode's action nor the new one's reward crosses over.
            self._env.act(np.where(ended, PROCGEN_NOOP, actions))
            reward, _, first = self._env.observe()
            rewards += np.where(ended, 0, reward)
            self._steps += 1
            late = self._steps >= PROCGEN_MAX_STEPS
            terminated |= first & ~late & ~ended
            truncated |= first & late & ~ended
            self._steps[first] = 0
        return RecordedStep(rewards, terminated, truncated)

    def close(self) -> None:
        self._env.close()

    def _state(self) -> NDArray[np.float32]:
        """What every lane says of itself, float32 [n, S]."""
        return np.stack(
            [procgen_state.read_procgen_state(self._game, saved) for saved in self._env.callmethod("get_state")]
        )


def partition_levels(start: int, count: int, piece: ShardAssignment) -> tuple[int, int]:
    """The levels of one piece as (first level, number of levels), out of ``count`` levels from ``start`` on.

    Pieces get disjoint, almost equal ranges; with fewer levels than pieces, one level each, in turn.
    """
    if count == 0:
        return start, 0
    if count < piece.total:
        return start + piece.number % count, 1
    first, end = (count * i // piece.total for i in (piece.number, piece.number + 1))
    return start + first, end - first


def make_procgen(game: str, copies: int, options: Mapping[str, Any]) -> Any:
    """Procgen's own environment of some copies.

    Raises:
        ImportError: Procgen is not installed.
        ValueError: no such game, or an option that it does not take.
    """
    make, games = _import_procgen()
    if game not in games:  # Procgen itself would end the process
        raise ValueError(f"procgen:{game}: there is no such game, only {', '.join(games)}")
    try:
        return make(num=copies, env_name=game, **{**options, "num_threads": 0})
    except (TypeError, AssertionError) as error:
        raise ValueError(f"procgen:{game} with options {dict(options)}: {error}") from error


def _import_procgen() -> tuple[Any, list[str]]:
    """The constructor of Procgen's games, and their names."""
    # Procgen imports the old gym, which prints an obituary on every import; nobody can act on it here.
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from procgen.env import ENV_NAMES, ProcgenGym3Env
    except ImportError as error:
        raise ImportError(
            f"Procgen is not installed ({error}): pip install 'vwm[procgen]' (its wheels need Python below 3.12)"
        ) from error
    return ProcgenGym3Env, ENV_NAMES


# ------------------------------------------------------------------------------------------------- Gymnasium


class GymnasiumRecordingEnv(RecordingEnv):
    """One copy of a Gymnasium environment: its pixel observations, else what it renders."""

    lanes = 1

    def __init__(
        self, env: str, piece: ShardAssignment, size: int, frame_skip: int, options: Mapping[str, Any], state: bool
    ) -> None:
        atari = env.startswith("ALE/")
        # Atari skips inside its emulator; repeat_action_probability stays what the id says (0.25 for -v5).
        self._skip = 1 if atari else frame_skip
        self._env = make_gymnasium(env, {"frameskip": frame_skip, **options} if atari else dict(options))
        self._renders = not is_image_space(self._env.observation_space)
        if self._renders:
            self._env.close()
            self._env = make_gymnasium(env, {**options, "render_mode": "rgb_array"})
        rate = ALE_FPS if atari else float(self._env.metadata.get("render_fps") or 15)
        self.fps = rate / frame_skip
        self.actions = env_action_spec(env, self._env)
        self._name, self._size = env, size
        self._observation, _ = self._env.reset(seed=piece.seed)
        self._state = make_state_reader(env, self._env.unwrapped, self._observation) if state else None
        self.state_names = self._state.names if self._state else ()

    def observe(self) -> RecordedObservation:
        frame = self._env.render() if self._renders else self._observation
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(f"{self._name}: renders {frame.dtype} {frame.shape}, not RGB; it cannot be recorded")
        frames = resize_frame(frame, self._size, self._size)[None]
        return RecordedObservation(frames, self._state.read(self._observation)[None] if self._state else None)

    def act(self, actions: NDArray[Any]) -> RecordedStep:
        action = int(actions[0]) if self.actions.count else self.actions.own(actions[0])
        total = 0.0
        for left in reversed(range(self._skip)):
            with rendering_disabled(self._env.unwrapped) if left else contextlib.nullcontext():
                self._observation, reward, terminated, truncated, _ = self._env.step(action)
            total += float(reward)
            if terminated or truncated:
                self._observation, _ = self._env.reset()
                break
        return RecordedStep(np.array([total], np.float32), np.array([bool(terminated)]), np.array([bool(truncated)]))

    def close(self) -> None:
        self._env.close()


def make_gymnasium(env: str, options: dict[str, Any]) -> Any:
    """A Gymnasium environment by its id; ``procgen:coinrun`` (any Procgen game) is one copy of it.

    Raises:
        ImportError: a package that it needs is not installed.
        ValueError: there is no such id, or it does not take the options.
    """
    import gymnasium

    if env.startswith("procgen:"):
        from vwm.envs.procgen import ProcgenEnv

        return ProcgenEnv(env.removeprefix("procgen:"), **options)
    module = env.partition(":")[0] if ":" in env else None
    try:
        if env.startswith("ALE/"):
            import ale_py

            gymnasium.register_envs(ale_py)
        if env in BUILT_IN_ENV_MODULES:
            importlib.import_module(BUILT_IN_ENV_MODULES[env])
        if module and importlib.util.find_spec(module.partition(".")[0]) is None:
            sys.path.append(str(Path.cwd()))  # a user's own, in the folder he stands in
        return gymnasium.make(env, disable_env_checker=True, **options)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        if module and importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ImportError(
                f"{env}: there is no module {module!r}: install it, or have it in the current folder or on PYTHONPATH"
            ) from error
        extra = next((extra for part, extra in ENV_PACKAGE_EXTRAS.items() if part in env), "envs")
        raise ImportError(
            f"{env} needs a package that is not installed ({error}): pip install 'vwm[{extra}]'"
        ) from error
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(
            f"{env} with options {options}: {error}. Known ids: procgen:coinrun, ALE/Pong-v5, "
            f"{', '.join(BUILT_IN_ENV_MODULES)}, any Gymnasium id."
        ) from error


@contextlib.contextmanager
def rendering_disabled(game: Any) -> Iterator[None]:
    """Let CarRacing step without drawing, which takes 99% of its time; nothing but what it shows depends on that."""
    if not hasattr(game, "car"):
        yield
        return
    game._render = lambda mode: None
    try:
        yield
    finally:
        del game._render


def is_image_space(space: Any) -> bool:
    """Whether a space of observations is of uint8 pictures."""
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return getattr(space, "dtype", None) == np.uint8 and len(shape) == 3 and shape[-1] == 3


def env_action_spec(name: str, env: Any) -> EnvActionSpec:
    """What a Gymnasium environment takes. Raises ValueError for anything but Discrete (from 0) and flat Box."""
    from gymnasium import spaces

    space = env.action_space
    if isinstance(space, spaces.Discrete) and space.start == 0:
        meanings = getattr(env.unwrapped, "get_action_meanings", tuple)
        return EnvActionSpec(int(space.n), _no_bounds(), _no_bounds(), tuple(meanings()))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        low, high = (np.nan_to_num(b, posinf=1, neginf=-1).astype(np.float32) for b in (space.low, space.high))
        return EnvActionSpec(0, low, high, CONTINUOUS_ACTION_NAMES.get(name.rpartition(":")[-1].partition("-v")[0], ()))
    raise ValueError(f"{name}: takes actions {space}; only Discrete (from 0) and flat Box actions can be recorded")


def _no_bounds() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@contextlib.contextmanager
def closing_env(environment: RecordingEnv) -> Iterator[RecordingEnv]:
    """Close an environment when the block ends."""
    try:
        yield environment
    finally:
        environment.close()
