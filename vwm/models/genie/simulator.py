"""Genie as a simulator: tokens are sampled frame by frame from cached keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float
from vwm.core.seeds import fold_in
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.token_simulator import TokenSimulator, TokenWorldState
from vwm.models.genie.dynamics import MaskGITDynamics, MaskGITState
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling, sample_tokens
from vwm.nn.outcome_heads import RewardTerminationHeads, sample_outcomes
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


class GenieSimulator(TokenSimulator):
    """Genie's tokenizer, latent action model and masked dynamics: see ``Simulator``.

    Args:
        tokenizer: encodes video to tokens, of r frames each after the first latent, and decodes them.
        dynamics: predicts the next frame's tokens from tokens and actions.
        latent_action: infers the actions of a context, one of several or continuous ones; None where they were labeled.
        actions: the action space; its size must be the dynamics'.
        outcomes: heads for reward and termination; None without them.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "latent_action", "outcomes")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("latent_action", "outcomes")
    SAMPLING_CLASS = MaskGITSampling
    dynamics: MaskGITDynamics

    def __init__(
        self,
        tokenizer: SpaceTimeTokenizer | CausalVAE,
        dynamics: MaskGITDynamics,
        latent_action: LatentActionModel | None,
        actions: ActionSpace,
        outcomes: RewardTerminationHeads | None = None,
        **rest: Any,
    ) -> None:
        if actions.size != dynamics.num_actions:
            raise ValueError(f"{actions.size} actions named, but dynamics.num_actions={dynamics.num_actions}")
        if not actions.fits(dynamics.action_space):
            raise ValueError(f"{actions} named, but the dynamics takes {dynamics.action_space}")
        if dynamics.codebook_size != tokenizer.codebook_size:
            raise ValueError(
                f"dynamics.codebook_size={dynamics.codebook_size}, but the tokenizer has {tokenizer.codebook_size}"
            )
        if tokenizer.time_compression != dynamics.frames_per_latent:
            raise ValueError(
                f"the tokenizer makes a latent of {tokenizer.time_compression} frames, the dynamics takes latents of "
                f"{dynamics.frames_per_latent}"
            )
        if latent_action is not None and not latent_action.action_space.fits(actions):
            raise ValueError(f"latent_action infers {latent_action.action_space}, but the dynamics takes {actions}")
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.latent_action = None if latent_action is None else latent_action.eval()
        self.outcomes = None if outcomes is None else outcomes.eval()

    def complete_context_actions(self, video: Tensor, actions: Tensor | None) -> Tensor | None:
        """See ``TokenSimulator.complete_context_actions``: by the latent action model."""
        return (
            self.latent_action.infer(video).actions if actions is None and self.latent_action is not None else actions
        )

    def advance(self, state: TokenWorldState, action: Tensor, decode: bool) -> tuple[TokenWorldState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is the frame's tokens, int64 [b, h, w]."""
        seed, actions = fold_in(state.seed, state.frames_generated), self.actions_per_frame(action)
        position, action_embedding = state.dynamics.position, self.dynamics.embed_actions(actions)[:, 0]
        tokens = sample_tokens(self.dynamics, state.dynamics, actions, seed, self.sampling)
        latent = tokens.unflatten(-1, self.tokenizer.grid)
        dynamics, features = self._observe_tokens(state.dynamics, latent[:, None], actions)
        outcomes = sample_outcomes(self.outcomes, state.features, action_embedding, state.seed, position, features)
        return self.show_tokens(state, dynamics, tokens, features, outcomes, decode)

    @property
    def num_latent_actions(self) -> int:
        """See ``InfersActions.num_latent_actions``."""
        return 0 if self.latent_action is None else self.latent_action.num_actions

    @torch.inference_mode()
    def infer_actions(self, frames: Tensor) -> Tensor:
        """See ``InfersActions.infer_actions``."""
        if self.latent_action is None:
            raise ValueError("this simulator was trained on labeled actions: it has no latent ones to infer")
        self.check_context(frames)
        return self.latent_action.infer(frames_to_float(frames.to(self.device))).actions

    def next_frame_logits(self, state: MaskGITState, truth: Tensor, actions: Tensor) -> Tensor:
        """See ``TokenSimulator.next_frame_logits``: of a wholly masked frame."""
        return self.dynamics.predict_logits(state, torch.full_like(truth, self.dynamics.mask_token), actions)
