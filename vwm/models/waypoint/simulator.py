"""Waypoint 1 as a simulator: frames are sampled one by one from remembered keys and values."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.action_parts import ActionPart
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import NoSampling, VideoSimulator
from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.models.waypoint.memory import LayerMemory
from vwm.models.waypoint.network import CONTROL_VALUES, WaypointDiT

KEY_CODES = {
    "W": 0x57,
    "A": 0x41,
    "S": 0x53,
    "D": 0x44,
    "jump": 0x20,
    "sprint": 0x10,
    "crouch": 0x11,
    "attack": 0x01,
    "aim": 0x02,
    "E": 0x45,
    "Q": 0x51,
    "F": 0x46,
    "1": 0x31,
    "2": 0x32,
    "3": 0x33,
}
"""The buttons of keys and of the mouse, as Windows numbers them."""
WHEEL = ("none", "up", "down")


def keyboard_and_mouse() -> ActionSpace:
    """Return the action space: ``keys``, ``wheel``, and ``mouse`` (a pointer, whose 1 is the network's 1)."""
    return ActionSpace.composite(
        ActionPart("keys", len(KEY_CODES), names=tuple(KEY_CODES)),
        ActionPart("choice", len(WHEEL), "wheel", WHEEL),
        ActionPart("pointer", name="mouse"),
    )


class WaypointState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        memory: of every block.
        frame: int64 [b], number of frames so far.
        latent: float [b, h, w, c], the last one.
        seed: int64 [b].
    """

    memory: tuple[LayerMemory, ...]
    frame: Tensor
    latent: Tensor
    seed: Tensor


class WaypointSimulator(VideoSimulator):
    """Waypoint's autoencoder and diffusion transformer: see ``Simulator``.

    Args:
        tokenizer: encodes and decodes each frame by itself.
        dynamics: the network.
        actions: ``keyboard_and_mouse``.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks or the actions do not fit each other.
    """

    SAMPLING_CLASS = NoSampling

    def __init__(self, tokenizer: FrameTokenizer, dynamics: WaypointDiT, actions: ActionSpace, **rest: Any) -> None:
        tokenizer.check_latents_of(dynamics.grid, dynamics.channels)
        if not actions.fits(keyboard_and_mouse()) or dynamics.buttons <= max(KEY_CODES.values()):
            raise ValueError(f"Waypoint takes {keyboard_and_mouse()} of 256 buttons, got {actions}")
        super().__init__(tokenizer, dynamics, actions, **rest)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[WaypointState, Tensor]:
        """See ``Simulator.reset``. Unknown actions count as no key and no movement."""
        self.check_context(context)
        batch, frames = context.shape[:2]
        actions = self.check_context_actions(context_actions, batch, frames)
        latents = self.tokenizer.encode(frames_to_float(context.to(self.device)))
        state = WaypointState(
            self.dynamics.empty_memory(batch),
            torch.zeros(batch, dtype=torch.int64, device=self.device),
            latents[:, 0],
            world_seeds(seed, batch, self.device),
        )
        nothing = latents.new_zeros(batch, self.dynamics.buttons + CONTROL_VALUES)
        for number in range(frames):
            known = actions is not None and number > 0
            action = self._network_action(actions[:, number - 1]) if known and actions is not None else nothing
            state = self._remember(state, latents[:, number], action)
        return state, video_to_uint8(self.tokenizer.decode(latents[:, -1:]))[:, 0]

    def advance(self, state: WaypointState, action: Tensor, decode: bool) -> tuple[WaypointState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is float [b, h, w, c]."""
        given, sigmas = self._network_action(action), self.dynamics.sigmas
        latent = seeded_normal(fold_in(state.seed, state.frame), *state.latent.shape[1:]).to(state.latent.dtype)
        for sigma, following in itertools.pairwise(sigmas):
            velocity = self.dynamics(latent, sigma, given, state.frame, state.memory)[0]
            latent = latent + (following - sigma) * velocity.to(latent.dtype)
        frame = self.shown_frames(self.tokenizer.decode(latent[:, None])) if decode else None
        reward = torch.zeros(len(latent), device=self.device)
        output = StepOutput(frame=frame, latent=latent, reward=reward, terminated=reward.bool())
        return self._remember(state, latent, given), output

    @torch.inference_mode()
    def observe(self, state: WaypointState, action: Tensor, frame: Tensor) -> WaypointState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: WaypointState, action: Tensor, frames: Tensor) -> WaypointState:
        """Compute ``observe`` of an action and a frame that were checked."""
        latent = self.tokenizer.encode(frames_to_float(frames))[:, 0]
        return self._remember(state, latent, self._network_action(action))

    def _remember(self, state: WaypointState, latent: Tensor, action: Tensor) -> WaypointState:
        """Add a clean frame to the state."""
        memory = self.dynamics(latent, 0.0, action, state.frame, state.memory)[1]
        return WaypointState(memory, state.frame + 1, latent, state.seed)

    def _network_action(self, action: Tensor) -> Tensor:
        """Convert actions [b, size] to the mouse, the buttons and the wheel, float [b, buttons + 3]."""
        parts = self.spec.actions.slices
        keys = action[:, parts["keys"]]
        buttons = keys.new_zeros(len(keys), self.dynamics.buttons)
        for number, code in enumerate(KEY_CODES.values()):
            buttons[:, code] = keys[:, number]
        choice = action[:, parts["wheel"]]
        wheel = (choice == WHEEL.index("up")).to(keys) - (choice == WHEEL.index("down")).to(keys)
        return torch.cat((action[:, parts["mouse"]], buttons, wheel), dim=-1)
