"""Simulators whose state is the window of latents and actions from which they sample the next frame."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.frame_window import FrameWindow
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput


class WindowState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        past: the last frames, with actions as the network takes them.
        position: int64 [b], number of frames so far.
        seed: int64 [b].
    """

    past: FrameWindow
    position: Tensor
    seed: Tensor


class WindowSimulator(VideoSimulator):
    """Samples the next latent from a window of past ones; the tokenizer encodes and decodes each frame by itself.

    What the network computes of the past frames is not kept for the next step: for models whose window moves, what a
    frame at its beginning holds in deeper layers changes when the frame before it leaves.
    """

    @property
    @abstractmethod
    def past_frames(self) -> int:
        """Number of frames that the window holds."""

    @property
    @abstractmethod
    def network_action_dims(self) -> int:
        """Number of values of an action as the network takes it."""

    @abstractmethod
    def to_network_actions(self, actions: Tensor) -> Tensor:
        """Convert actions [..., size] of ``spec.actions`` to float [..., a], as the network takes them."""

    @abstractmethod
    def sample_next(self, state: WindowState, action: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the next latent, float [b, h, w, c], and predict the reward, float32 [b].

        Args:
            state: before it.
            action: float [b, a], as the network takes it.
        """

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[WindowState, Tensor]:
        """See ``Simulator.reset``. Unknown actions count as zeros."""
        self.check_context(context)
        batch, frames = context.shape[:2]
        actions = self.check_context_actions(context_actions, batch, frames)
        kept = min(frames, self.past_frames)
        latents = self.tokenizer.encode(frames_to_float(context[:, -kept:].to(self.device)))
        led = latents.new_zeros(batch, frames, self.network_action_dims)
        if actions is not None:
            led[:, 1:] = self.to_network_actions(actions)
        past = FrameWindow.start(latents, led[:, -kept:], self.past_frames)
        position = torch.full((batch,), frames, dtype=torch.int64, device=self.device)
        shown = video_to_uint8(self.tokenizer.decode(latents[:, -1:]))[:, 0]
        return WindowState(past, position, world_seeds(seed, batch, self.device)), shown

    def advance(self, state: WindowState, action: Tensor, decode: bool) -> tuple[WindowState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is float [b, h, w, c]."""
        given = self.to_network_actions(action).to(state.past.actions.dtype)
        latent, reward = self.sample_next(state, given)
        frame = self.shown_frames(self.tokenizer.decode(latent[:, None])) if decode else None
        output = StepOutput(frame=frame, latent=latent, reward=reward, terminated=torch.zeros_like(reward).bool())
        return _append(state, latent, given), output

    @torch.inference_mode()
    def observe(self, state: WindowState, action: Tensor, frame: Tensor) -> WindowState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: WindowState, action: Tensor, frames: Tensor) -> WindowState:
        """Compute ``observe`` of an action and a frame that were checked."""
        latent = self.tokenizer.encode(frames_to_float(frames))[:, 0]
        return _append(state, latent, self.to_network_actions(action).to(latent.dtype))

    def latent(self, state: WindowState) -> Tensor:
        """See ``Simulator.latent``."""
        return state.past.latents[:, -1]


def _append(state: WindowState, latent: Tensor, action: Tensor) -> WindowState:
    return WindowState(state.past.append(latent, action), state.position + 1, state.seed)
