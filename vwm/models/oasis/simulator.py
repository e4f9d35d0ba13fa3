"""Oasis as a simulator: its state holds the window of latents and actions from which the next frame is sampled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.models.oasis.actions import PUBLISHED_ACTIONS, minecraft_actions, to_published_actions
from vwm.models.oasis.network import OasisDiT
from vwm.models.oasis.sampling import OasisSampling, PastFrames, check_oasis_sampling, sample_next_latent


class OasisState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        past: the last ``window - 1`` frames, the latest last, of which the first may be none yet.
        position: int64 [b], number of frames so far.
        seed: int64 [b].
    """

    past: PastFrames
    position: Tensor
    seed: Tensor


class OasisSimulator(VideoSimulator):
    """Oasis's autoencoder and diffusion transformer: see ``Simulator``.

    A step computes keys and values of the past frames once, for all its sampling steps. They are not kept for the next
    step: the window moves by a frame, and what a frame at its beginning holds in deeper blocks changes when the frame
    before it leaves.

    Args:
        tokenizer: encodes and decodes each frame by itself.
        dynamics: the network.
        actions: ``minecraft_actions``.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks or the actions do not fit each other.
    """

    SAMPLING_CLASS = OasisSampling

    def __init__(self, tokenizer: FrameTokenizer, dynamics: OasisDiT, actions: ActionSpace, **rest: Any) -> None:
        if (tuple(tokenizer.grid), tokenizer.channels) != (dynamics.grid, dynamics.channels):
            raise ValueError(
                f"the tokenizer gives latents {list(tokenizer.grid)} x {tokenizer.channels}, the dynamics takes "
                f"{list(dynamics.grid)} x {dynamics.channels}"
            )
        if not actions.fits(minecraft_actions()) or dynamics.action_dims != len(PUBLISHED_ACTIONS):
            raise ValueError(
                f"Oasis takes {minecraft_actions()}, {len(PUBLISHED_ACTIONS)} numbers; got {actions} and a dynamics "
                f"of {dynamics.action_dims}"
            )
        super().__init__(tokenizer, dynamics, actions, **rest)

    def check_sampling(self, sampling: OasisSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_oasis_sampling(sampling)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[OasisState, Tensor]:
        """See ``Simulator.reset``. Unknown actions count as no key and no movement."""
        self.check_context(context)
        batch, frames = context.shape[:2]
        actions = self.check_context_actions(context_actions, batch, frames)
        kept = min(frames, self.dynamics.window - 1)
        latents = self.tokenizer.encode(frames_to_float(context[:, -kept:].to(self.device)))
        shown = self.tokenizer.decode(latents[:, -1:])
        led = latents.new_zeros(batch, frames, self.dynamics.action_dims)
        if actions is not None:
            led[:, 1:] = to_published_actions(actions)
        missing = self.dynamics.window - 1 - kept
        known = torch.ones(batch, kept, dtype=torch.bool, device=self.device)
        past = PastFrames(*(_pad_front(part, missing) for part in (latents, led[:, -kept:], known)))
        position = torch.full((batch,), frames, dtype=torch.int64, device=self.device)
        state = OasisState(past, position, world_seeds(seed, batch, self.device))
        return state, video_to_uint8(shown)[:, 0]

    def advance(self, state: OasisState, action: Tensor, decode: bool) -> tuple[OasisState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is float [b, h, w, c]."""
        action = to_published_actions(action).to(state.past.actions.dtype)
        noise = seeded_normal(fold_in(state.seed, state.position), *state.past.latents.shape[2:])
        latent = sample_next_latent(
            self.dynamics, state.past, action, noise.to(state.past.latents.dtype), self.sampling
        )
        frame = self.shown_frames(self.tokenizer.decode(latent[:, None])) if decode else None
        reward = torch.zeros(len(latent), device=self.device)
        output = StepOutput(frame=frame, latent=latent, reward=reward, terminated=reward.bool())
        return _append(state, latent, action), output

    @torch.inference_mode()
    def observe(self, state: OasisState, action: Tensor, frame: Tensor) -> OasisState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: OasisState, action: Tensor, frames: Tensor) -> OasisState:
        """Compute ``observe`` of an action and a frame that were checked."""
        latent = self.tokenizer.encode(frames_to_float(frames))[:, 0]
        return _append(state, latent, to_published_actions(action).to(latent.dtype))

    def latent(self, state: OasisState) -> Tensor:
        """See ``Simulator.latent``."""
        return state.past.latents[:, -1]


def _append(state: OasisState, latent: Tensor, action: Tensor) -> OasisState:
    """Return the state with one more frame, without the first of its window."""
    added = (latent, action, torch.ones_like(state.past.known[:, 0]))
    past = (torch.cat((old[:, 1:], new[:, None]), dim=1) for old, new in zip(state.past, added, strict=True))
    return OasisState(PastFrames(*past), state.position + 1, state.seed)


def _pad_front(x: Tensor, frames: int) -> Tensor:
    """[b, t, ...] -> [b, frames + t, ...], with zeros before."""
    return torch.cat((x.new_zeros(len(x), frames, *x.shape[2:]), x), dim=1)
