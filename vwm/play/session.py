"""A play session: the current state of the world, its history, and the recording.

This file is independent of the web server, which calls the methods one at a time.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.simulator import Simulator, State
from vwm.play.host_copy import HostCopy
from vwm.play.messages import MAX_UNDO
from vwm.play.stepping import Action, BatchStep, WorldStepper

MAX_UNDO_BYTES = 2**30
"""Memory for the histories of all sessions; the larger the states, the fewer are kept."""
MAX_RECORDING_BYTES = 2**28
"""Memory for the recorded frames of all sessions: 24 minutes of 64 x 64 pixels at 15 frames per second."""


@dataclass(frozen=True)
class PlayStep:
    """The world after a step, or after a reset (``step`` 0).

    Attributes:
        state: the simulator's state, batch 1.
        frames: uint8 [k, h, w, 3], those of the step; one after a reset.
        step: number of steps since the reset.
        reward: of the last step.
        episode_return: sum of the rewards since the reset.
        terminated: whether the world ended the episode.
        latency_ms: time that the model took, in milliseconds.
        action: of the step; None after a reset.
        began: time of ``time.perf_counter`` at which the model began.
        worlds: number of sessions whose steps were computed together.
    """

    state: State
    frames: NDArray[np.uint8]
    step: int = 0
    reward: float = 0.0
    episode_return: float = 0.0
    terminated: bool = False
    latency_ms: float = 0.0
    action: Action | None = None
    began: float = 0.0
    worlds: int = 1

    @property
    def frame(self) -> NDArray[np.uint8]:
        """The last frame, uint8 [h, w, 3]."""
        return self.frames[-1]


class PlaySession:
    """The state, history and recording of one player.

    States are values, so undo only requires to keep the earlier ones. Undo also removes the undone frames from the
    recording.

    Args:
        simulator: the world.
        starts: uint8 [n, t, h, w, 3], the contexts that a reset can select.
        sessions: number of sessions that share the memory for undoing and recording.
    """

    def __init__(self, simulator: Simulator, starts: Tensor | None = None, sessions: int = 1) -> None:
        self.simulator = simulator
        self.sessions = sessions
        self.starts = starts
        self.uploaded_image: NDArray[np.uint8] | None = None
        self.current: PlayStep | None = None
        self.history: deque[PlayStep] = deque(maxlen=MAX_UNDO)
        self.recording = False
        self.recording_frames: list[NDArray[np.uint8]] = []
        self.recording_actions: list[Action | None] = []  # that led to the frames
        height, width = simulator.spec.context.image_size
        self.max_recorded_frames = max(1, MAX_RECORDING_BYTES // sessions // (height * width * 3))
        self._times: deque[float] = deque(maxlen=16)

    @property
    def fps(self) -> float:
        """Frames per second over the last few steps; 0 while unknown."""
        if len(self._times) < 2:
            return 0.0
        frames = self.simulator.spec.frames_per_step * (len(self._times) - 1)
        return frames / max(self._times[-1] - self._times[0], 1e-6)

    def reset(self, start: int | None, seed: int) -> PlayStep:
        """Reset to the start of an index, or to the uploaded image where it is None.

        Raises:
            ValueError: there is no such start, or no image was uploaded.
        """
        began = time.perf_counter()
        with torch.no_grad():
            state, frame = self.simulator.reset(self._context(start), seed)
        frames = HostCopy([frame]).arrays()[0].copy()
        self.history.clear()
        self._times.clear()
        latency_ms = (time.perf_counter() - began) * 1000
        return self._set_current(PlayStep(state, frames, latency_ms=latency_ms, began=began))

    def step(self, action: Action) -> PlayStep:
        """Advance by one step. Raises ValueError before the first reset."""
        batch = WorldStepper(self.simulator).step([self.require_current().state], [action])
        return self.take_step(action, batch, world=0)

    def take_step(self, action: Action, batch: BatchStep, world: int) -> PlayStep:
        """Take the outcome of a step of several worlds, of which this session's has an index."""
        previous = self.require_current()
        frames, rewards, terminated = batch.copy.arrays()
        reward = float(rewards[world])
        play_step = PlayStep(
            state=batch.states[world],
            frames=frames[world].copy(),  # the memory of the batch is needed again
            step=previous.step + 1,
            reward=reward,
            episode_return=previous.episode_return + reward,
            terminated=bool(terminated[world]),
            latency_ms=batch.latency_ms,
            action=action,
            began=batch.began,
            worlds=len(batch.states),
        )
        self._push_history(previous)
        self._times.append(time.perf_counter())
        return self._set_current(play_step)

    def undo(self, steps: int = 1) -> PlayStep:
        """Go back ``steps`` steps, or to the start of the history. Raises ValueError without a history."""
        current, undone = self.require_current(), 0
        if not self.history:
            raise ValueError("nothing to undo: this is the start of the history")
        for _ in range(min(steps, len(self.history))):
            undone += len(current.frames)
            current = self.history.pop()
        self.current = current
        self._times.clear()
        if self.recording:
            del self.recording_frames[-undone:]
            del self.recording_actions[-undone:]
            # after an undo to a step before the recording, the recording starts here
            self.recording_frames = self.recording_frames or [current.frame]
            self.recording_actions = self.recording_actions or [None]
        return self.current

    def start_recording(self) -> None:
        """Discard the last recording and start a new one with the current frame."""
        self.recording_frames = [self.require_current().frame]
        self.recording_actions = [None]
        self.recording = True

    def stop_recording(self) -> None:
        """Stop the recording; its frames are kept until the next one starts."""
        self.recording = False

    def recorded_frames(self) -> NDArray[np.uint8]:
        """Return the recording, uint8 [T, h, w, 3]. Raises ValueError where nothing was recorded."""
        if not self.recording_frames:
            raise ValueError("nothing is recorded yet: start a recording and play")
        return np.stack(self.recording_frames)

    def recorded_actions(self) -> NDArray[Any]:
        """Return the action taken at each recorded frame, [T] or [T, a]; at the last one, where none was, the rest."""
        self.recorded_frames()
        space = self.simulator.spec.actions
        rest: Action = 0 if space.is_discrete else space.rest or (0.0,) * space.size
        # a reset within the recording leads to its frame without an action
        taken = [rest if action is None else action for action in (*self.recording_actions[1:], None)]
        return np.array(taken, np.int64 if space.is_discrete else np.float32)

    def _context(self, start: int | None) -> Tensor:
        if start is None:
            if self.uploaded_image is None:
                raise ValueError("no image is uploaded yet: send one first")
            return torch.from_numpy(self.uploaded_image)[None, None]
        if self.starts is None or not 0 <= start < len(self.starts):
            raise ValueError(f"there is no start {start}")
        return self.starts[start : start + 1]

    def require_current(self) -> PlayStep:
        """Return the current step. Raises ValueError before the first reset."""
        if self.current is None:
            raise ValueError("the world has not been reset yet: reset first")
        return self.current

    def _set_current(self, play_step: PlayStep) -> PlayStep:
        self.current = play_step
        if self.recording:
            self.recording_frames.extend(play_step.frames)
            self.recording_actions.extend([play_step.action] * len(play_step.frames))
            self.recording = len(self.recording_frames) < self.max_recorded_frames
        return play_step

    def _push_history(self, play_step: PlayStep) -> None:
        self.history.append(play_step)
        keep = max(1, MAX_UNDO_BYTES // self.sessions // max(1, state_bytes(play_step.state)))
        while len(self.history) > keep:
            self.history.popleft()


def state_bytes(state: State) -> int:
    """Sum the bytes of all tensors in a nested state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
