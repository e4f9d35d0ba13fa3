"""A Genie world behind the simulator interface: tokens are drawn frame by frame from cached keys and values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.genie.dynamics import MaskGITDynamics, Sampling, sample_frame
from vwm.genie.latent_action import LatentActionModel
from vwm.nn.patches import to_float, to_uint8
from vwm.nn.random import fold, world_seeds
from vwm.nn.space_time import SpaceTimeState
from vwm.simulator.interface import ActionSpace, Simulator, StepOutput
from vwm.tokenizer.space_time import SpaceTimeTokenizer


class GenieState(NamedTuple):
    """One world a batch entry: what the dynamics and the decoder remember, the seed, and the frames drawn so far."""

    dynamics: SpaceTimeState
    decoder: SpaceTimeState
    seed: Tensor
    drawn: Tensor


class GenieSimulator(Simulator):
    """See ``Simulator``.

    Args:
        tokenizer: video to tokens and back.
        dynamics: tokens and actions to the next frame's tokens.
        latent_action: infers the actions of a context; None where the actions were labelled.
        actions: the action space; its size must be the dynamics'.
        fps: frames a second of the recording.
        sampling: how a frame is drawn.
        context_frames: how many frames a reset likes to be given.
        title: for people.
        starts: uint8 [n, t, h, w, 3], contexts to begin from, where some are at hand.

    Raises:
        ValueError: the parts do not fit each other.
    """

    def __init__(
        self,
        tokenizer: SpaceTimeTokenizer,
        dynamics: MaskGITDynamics,
        latent_action: LatentActionModel | None,
        actions: ActionSpace,
        fps: float = 15.0,
        sampling: Sampling = Sampling(),
        context_frames: int = 4,
        title: str = "world",
        starts: Tensor | None = None,
    ) -> None:
        if actions.size != dynamics.num_actions:
            raise ValueError(f"{actions.size} actions named, but dynamics.num_actions={dynamics.num_actions}")
        if dynamics.codebook_size != tokenizer.codebook_size:
            raise ValueError(
                f"dynamics.codebook_size={dynamics.codebook_size}, but the tokenizer has {tokenizer.codebook_size}"
            )
        self.tokenizer, self.dynamics, self.latent_action = tokenizer.eval(), dynamics.eval(), latent_action
        if latent_action is not None:
            latent_action.eval()
        self.actions, self.fps, self.sampling = actions, fps, sampling
        self.context_frames, self.title, self.starts = context_frames, title, starts
        self.image_size = tokenizer.image_size

    @property
    def device(self) -> torch.device:
        """Where the world's tensors live."""
        return self.dynamics.places.device

    def to(self, device: torch.device | str) -> GenieSimulator:
        """Move the networks."""
        for part in (self.tokenizer, self.dynamics, self.latent_action):
            if part is not None:
                part.to(device)
        return self

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[GenieState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        video = to_float(context.to(self.device))
        batch, frames = video.shape[:2]
        _, tokens = self.tokenizer.encode_step(self.tokenizer.init_encoder(batch), video)
        if frames > 1 and context_actions is None and self.latent_action is not None:
            context_actions = self.latent_action.infer(video).indices
        state = self.dynamics.observe(self.dynamics.init_state(batch), tokens[:, :1].flatten(2), None)
        if frames > 1:
            if context_actions is not None and context_actions.shape[:2] != (batch, frames - 1):
                raise ValueError(
                    f"{frames} context frames have {frames - 1} actions between them: context_actions must be "
                    f"[{batch}, {frames - 1}, ...], got {list(context_actions.shape)}"
                )
            lead = None if context_actions is None else context_actions.to(self.device)
            state = self.dynamics.observe(state, tokens[:, 1:].flatten(2), lead)
        decoder, shown = self.tokenizer.decode_step(self.tokenizer.init_decoder(batch), tokens)
        seeds = world_seeds(seed, batch, self.device)
        return GenieState(state, decoder, seeds, torch.zeros_like(seeds)), to_uint8(shown[:, -1:])[:, 0]

    @torch.inference_mode()
    def step(self, state: GenieState, action: Tensor, decode: bool = True) -> tuple[GenieState, StepOutput]:
        """See ``Simulator.step``. ``latent`` is the frame's tokens, int64 [b, h, w]."""
        batch = len(state.seed)
        self.check_action(action, batch)
        seed = fold(state.seed, state.drawn)
        dynamics, tokens = sample_frame(self.dynamics, state.dynamics, action.to(self.device), seed, self.sampling)
        latent = tokens.unflatten(-1, self.tokenizer.grid)
        # The decoder remembers past frames too, so it takes every frame in, wanted or not; that is one pass of many.
        decoder, shown = self.tokenizer.decode_step(state.decoder, latent[:, None])
        frame = to_uint8(shown)[:, 0] if decode else None
        zeros = torch.zeros(batch, device=self.device)
        return (
            GenieState(dynamics, decoder, state.seed, state.drawn + 1),
            StepOutput(frame, latent, zeros, zeros.bool()),
        )
