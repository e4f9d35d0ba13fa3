"""Batched environments for recording: whole shards of play from one seed.

They follow the batched protocol (``BatchedEnv``) with ``autoreset`` ``SAME_STEP``: every observation is a frame that an
action is taken on, as the alignment rule of :mod:`vwm.data.episode` requires. Later episodes continue the generator of
the environment, so that a shard is a function of one seed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from vwm.envs.action_spec import EnvActionSpec
from vwm.envs.batched_envs import BatchedEnv
from vwm.envs.state_readers import make_state_reader
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.envs.wrapped_env import WrappedEnv

ALE_FPS = 60.0


class RecordingEnv(BatchedEnv):
    """Copies of an environment that are recorded.

    Attributes:
        actions: its actions, with their bounds in the environment's own units.
        fps: frames per second when a person plays.
        state_names: one per number of the state; empty where the state is not recorded.
    """

    autoreset = AutoresetMode.SAME_STEP
    actions: EnvActionSpec
    fps: float
    state_names: tuple[str, ...] = ()

    @abstractmethod
    def read_state(self) -> NDArray[np.float32] | None:
        """Return the state that belongs to the current observation, float32 [count, S], or None if not recorded."""


@dataclass(frozen=True)
class ShardAssignment:
    """The shard that an environment is opened for; other shards get other levels and other random numbers.

    Attributes:
        number: of the shard, from 0.
        total: number of shards.
        seed: of everything random in this shard.
    """

    number: int
    total: int
    seed: int


def make_recording_env(
    env_id: str,
    shard: ShardAssignment,
    size: int,
    frame_skip: int = 1,
    options: Mapping[str, Any] | None = None,
    state: bool = False,
) -> RecordingEnv:
    """Open an environment for recording.

    Args:
        env_id: see ``vwm.envs.env_ids.make_env``.
        shard: the shard that it is for.
        size: side of the frames in pixels.
        frame_skip: steps of the environment for which an action is held.
        options: arguments of the environment's constructor.
        state: also read the environment's state.

    Raises:
        ImportError: a package is not installed; the message names the extra to install.
        ValueError: there is no such id, or it does not take an option or does not provide its state.
    """
    if frame_skip < 1:
        raise ValueError(f"frame_skip must be 1 or more, got {frame_skip}")
    if env_id.startswith("procgen:"):
        from vwm.envs.procgen import ProcgenRecordingEnv

        return ProcgenRecordingEnv(env_id.removeprefix("procgen:"), shard, size, frame_skip, options or {}, state)
    return GymnasiumRecordingEnv(env_id, shard, size, frame_skip, options or {}, state)


class GymnasiumRecordingEnv(RecordingEnv):
    """One copy of a Gymnasium environment; frames are its image observations, else what it renders."""

    count = 1

    def __init__(
        self, env_id: str, shard: ShardAssignment, size: int, frame_skip: int, options: Mapping[str, Any], state: bool
    ) -> None:
        self.env = WrappedEnv(env_id, options, size, frame_skip, images=True)
        native_fps = ALE_FPS if env_id.startswith("ALE/") else float(self.env.env.metadata.get("render_fps") or 15)
        self.fps = native_fps / frame_skip
        self.actions = self.env.actions
        self.spaces = EnvSpaces(self.env.observations, self.actions.space)
        self.seed = shard.seed
        self.state_reader = None
        if state:
            self.env.reset(self.seed)
            self.state_reader = make_state_reader(env_id, self.env.env.unwrapped, self.env.raw)
            self.state_names = self.state_reader.names

    def reset(self) -> TimeStep:
        """See ``BatchedEnv.reset``."""
        self.env.reset(self.seed)
        return autoreset_time_step(
            self.env.observe()[None], np.zeros(1), np.ones(1, bool), np.zeros(1, bool), np.zeros(1, bool)
        )

    def step(self, action: Tensor) -> TimeStep:
        """See ``BatchedEnv.step``."""
        outcome = self.env.step(action[0].numpy())
        ended = np.array([outcome.terminated or outcome.truncated])
        if ended[0]:
            self.env.reset()
        observation = self.env.observe()[None]
        return autoreset_time_step(
            observation, np.array([outcome.reward]), ended, ended, np.array([outcome.terminated])
        )

    def read_state(self) -> NDArray[np.float32] | None:
        """See ``RecordingEnv.read_state``."""
        return self.state_reader.read(self.env.raw)[None] if self.state_reader else None

    def close(self) -> None:
        """See ``BatchedEnv.close``."""
        self.env.close()


def autoreset_time_step(
    observation: NDArray[Any],
    reward: NDArray[Any],
    is_first: NDArray[np.bool_],
    is_last: NDArray[np.bool_],
    is_terminal: NDArray[np.bool_],
) -> TimeStep:
    """Make a time step of arrays; the observation is copied."""
    flags = [torch.from_numpy(flag.copy()) for flag in (is_first, is_last, is_terminal)]
    return TimeStep(torch.from_numpy(observation.copy()), torch.as_tensor(reward, dtype=torch.float32), *flags)
