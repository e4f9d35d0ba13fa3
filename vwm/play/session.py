"""One person's play: where the world stands, where it stood before, and what was recorded.

Nothing here knows of the web; the server calls these methods in its worker thread, one at a time.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vwm.core.simulator import Simulator, State
from vwm.play.messages import MAX_UNDO

MAX_UNDO_BYTES = 2**30
"""Memory for the earlier states of one session; a model with a long cache keeps fewer of them."""
MAX_RECORDING_BYTES = 2**28
"""Memory for the recorded frames of one session: 24 minutes of 64 x 64 pixels at 15 frames a second."""


@dataclass(frozen=True)
class PlayStep:
    """The world after a step (or, with ``step`` 0, after a reset).

    Attributes:
        state: the simulator's state, batch 1.
        frame: uint8 [h, w, 3].
        step: steps since the reset.
        reward: what the last step earned.
        total: what all steps since the reset earned.
        terminated: the world ended here.
        ms: how long the model took.
    """

    state: State
    frame: NDArray[np.uint8]
    step: int = 0
    reward: float = 0.0
    total: float = 0.0
    terminated: bool = False
    ms: float = 0.0


class PlaySession:
    """A world in play.

    Since states are values, undo only keeps the old ones; and since the recording follows the world, undo also
    takes the undone frames out of the recording.

    Args:
        simulator: the world.
        starts: uint8 [n, t, h, w, 3], the contexts that a reset can name.
    """

    def __init__(self, simulator: Simulator, starts: Tensor | None = None) -> None:
        self.simulator = simulator
        self.starts = starts
        self.upload: NDArray[np.uint8] | None = None
        self.now: PlayStep | None = None
        self.past: deque[PlayStep] = deque(maxlen=MAX_UNDO)
        self.recording = False
        self.recorded: list[NDArray[np.uint8]] = []
        height, width = simulator.spec.context.image_size
        self.max_recorded_frames = max(1, MAX_RECORDING_BYTES // (height * width * 3))
        self._times: deque[float] = deque(maxlen=16)

    @property
    def fps(self) -> float:
        """Steps a second over the last few steps; 0 while that is unknown."""
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-6)

    def reset(self, start: int | None, seed: int) -> PlayStep:
        """Start again from start number ``start``, or from the uploaded picture where it is None."""
        began = time.perf_counter()
        with torch.no_grad():
            state, frame = self.simulator.reset(self._context(start), seed)
        self.past.clear()
        self._times.clear()
        return self._move(PlayStep(state, _frame_to_numpy(frame), ms=_elapsed_ms(began)))

    def step(self, action: int | tuple[float, ...]) -> PlayStep:
        """Advance by one frame."""
        before = self._require_current()
        began = time.perf_counter()
        chosen = torch.tensor([action], dtype=torch.int64 if isinstance(action, int) else torch.float32)
        with torch.no_grad():
            state, output = self.simulator.step(before.state, chosen)
        assert output.frame is not None, "step(decode=True) gives a frame"
        reward = float(output.reward[0])
        moment = PlayStep(
            state=state,
            frame=_frame_to_numpy(output.frame),
            step=before.step + 1,
            reward=reward,
            total=before.total + reward,
            terminated=bool(output.terminated[0]),
            ms=_elapsed_ms(began),
        )
        self._push_history(before)
        self._times.append(time.perf_counter())
        return self._move(moment)

    def undo(self, steps: int = 1) -> PlayStep:
        """Go back ``steps`` steps, or as far as the history reaches."""
        self._require_current()
        if not self.past:
            raise ValueError("nothing to undo: this is as far back as the history reaches")
        steps = min(steps, len(self.past))
        for _ in range(steps):
            self.now = self.past.pop()
        assert self.now is not None
        self._times.clear()
        if self.recording:
            del self.recorded[-steps:]
            # undone to before the recording began: it begins here now
            self.recorded = self.recorded or [self.now.frame]
        return self.now

    def start_recording(self) -> None:
        """Drop the last recording and begin a new one with the frame that is on the screen."""
        self.recorded = [self._require_current().frame]
        self.recording = True

    def stop_recording(self) -> None:
        """End the recording; its frames stay until the next one starts."""
        self.recording = False

    def recorded_frames(self) -> NDArray[np.uint8]:
        """The recording, uint8 [T, h, w, 3]."""
        if not self.recorded:
            raise ValueError("nothing is recorded yet: start a recording and play")
        return np.stack(self.recorded)

    def _context(self, start: int | None) -> Tensor:
        if start is None:
            if self.upload is None:
                raise ValueError("no picture is uploaded yet: send one first")
            return torch.from_numpy(self.upload)[None, None]
        if self.starts is None or not 0 <= start < len(self.starts):
            raise ValueError(f"there is no start {start}")
        return self.starts[start : start + 1]

    def _require_current(self) -> PlayStep:
        if self.now is None:
            raise ValueError("there is no world yet: reset first")
        return self.now

    def _move(self, moment: PlayStep) -> PlayStep:
        self.now = moment
        if self.recording:
            self.recorded.append(moment.frame)
            self.recording = len(self.recorded) < self.max_recorded_frames
        return moment

    def _push_history(self, moment: PlayStep) -> None:
        self.past.append(moment)
        keep = max(1, MAX_UNDO_BYTES // max(1, state_bytes(moment.state)))
        while len(self.past) > keep:
            self.past.popleft()


def state_bytes(state: State) -> int:
    """Bytes of the tensors in a nested state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def _frame_to_numpy(frame: Tensor) -> NDArray[np.uint8]:
    return frame[0].cpu().numpy()


def _elapsed_ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
