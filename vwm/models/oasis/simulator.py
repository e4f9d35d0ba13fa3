"""Oasis as a simulator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vwm.core.seeds import fold_in, seeded_normal
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import FrameTokenizer
from vwm.core.window_simulator import WindowSimulator, WindowState
from vwm.models.oasis.actions import PUBLISHED_ACTIONS, minecraft_actions, to_published_actions
from vwm.models.oasis.network import OasisDiT
from vwm.models.oasis.sampling import OasisSampling, check_oasis_sampling, sample_next_latent


class OasisSimulator(WindowSimulator):
    """Oasis's autoencoder and diffusion transformer: see ``Simulator``.

    A step computes keys and values of the past frames once, for all its sampling steps.

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
        tokenizer.check_latents_of(dynamics.grid, dynamics.channels)
        if not actions.fits(minecraft_actions()) or dynamics.action_dims != len(PUBLISHED_ACTIONS):
            raise ValueError(
                f"Oasis takes {minecraft_actions()}, {len(PUBLISHED_ACTIONS)} numbers; got {actions} and a dynamics "
                f"of {dynamics.action_dims}"
            )
        super().__init__(tokenizer, dynamics, actions, **rest)

    def check_sampling(self, sampling: OasisSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_oasis_sampling(sampling)

    @property
    def past_frames(self) -> int:
        """See ``WindowSimulator``."""
        return int(self.dynamics.window) - 1

    @property
    def network_action_dims(self) -> int:
        """See ``WindowSimulator``."""
        return len(PUBLISHED_ACTIONS)

    def to_network_actions(self, actions: Tensor) -> Tensor:
        """See ``WindowSimulator``."""
        return to_published_actions(actions)

    def sample_next(self, state: WindowState, action: Tensor) -> tuple[Tensor, Tensor]:
        """See ``WindowSimulator``; there is no reward."""
        noise = seeded_normal(fold_in(state.seed, state.position), *state.past.latents.shape[2:])
        latent = sample_next_latent(
            self.dynamics, state.past, action, noise.to(state.past.latents.dtype), self.sampling
        )
        return latent, torch.zeros(len(latent), device=self.device)
