"""Genie as a simulator: tokens are sampled frame by frame from cached keys and values."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import TokenizerState
from vwm.models.genie.dynamics import MaskGITDynamics, MaskGITState
from vwm.models.genie.latent_action import LatentActionModel
from vwm.models.genie.sampling import MaskGITSampling, sample_tokens
from vwm.nn.outcome_heads import RewardTerminationHeads, sample_outcomes
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


class GenieState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        dynamics: keys and values of the past frames.
        encoder: the tokenizer encoder's state, of the frames that were observed, not of those that were generated.
        decoder: the tokenizer decoder's state.
        latent: int64 [b, h, w], the last latent's tokens.
        features: float [b, d], of the last latent.
        seed: int64 [b].
        frames_generated: int64 [b], the number of latents generated so far.
    """

    dynamics: MaskGITState
    encoder: TokenizerState
    decoder: TokenizerState
    latent: Tensor
    features: Tensor
    seed: Tensor
    frames_generated: Tensor


class GenieSimulator(VideoSimulator):
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
    transition_loss_name = "cross-entropy"

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

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[GenieState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, given = context.shape[:2]
        context_actions = self.check_context_actions(context_actions, batch, given)
        video = frames_to_float(self.trim_context(context).to(self.device))
        frames = video.shape[1]
        encoder, tokens = self.tokenizer.encode_step(self.tokenizer.init_encoder(batch), video)
        if frames > 1 and context_actions is None and self.latent_action is not None:
            context_actions = self.latent_action.infer(video).actions
        dynamics, features = self._observe_tokens(self.dynamics.init_state(batch), tokens[:, :1], None)
        if frames > 1:
            dynamics, features = self._observe_tokens(dynamics, tokens[:, 1:], context_actions)
        decoder, video = self.tokenizer.decode_step(self.tokenizer.init_decoder(batch), tokens)
        seeds = world_seeds(seed, batch, self.device)
        state = GenieState(
            dynamics=dynamics,
            encoder=encoder,
            decoder=decoder,
            latent=tokens[:, -1],
            features=features,
            seed=seeds,
            frames_generated=torch.zeros_like(seeds),
        )
        return state, video_to_uint8(video[:, -1:])[:, 0]

    def advance(self, state: GenieState, action: Tensor, decode: bool) -> tuple[GenieState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is the frame's tokens, int64 [b, h, w]."""
        seed, actions = fold_in(state.seed, state.frames_generated), self.actions_per_frame(action)
        position, action_embedding = state.dynamics.position, self.dynamics.embed_actions(actions)[:, 0]
        tokens = sample_tokens(self.dynamics, state.dynamics, actions, seed, self.sampling)
        latent = tokens.unflatten(-1, self.tokenizer.grid)
        dynamics, features = self._observe_tokens(state.dynamics, latent[:, None], actions)
        reward, terminated = sample_outcomes(
            self.outcomes, state.features, action_embedding, state.seed, position, features
        )
        # The decoder's state depends on every frame, so it decodes each, even if no pixels are requested.
        decoder, video = self.tokenizer.decode_step(state.decoder, latent[:, None])
        frame = self.shown_frames(video) if decode else None
        count = state.frames_generated + 1
        state = GenieState(
            dynamics=dynamics,
            encoder=state.encoder,
            decoder=decoder,
            latent=latent,
            features=features,
            seed=state.seed,
            frames_generated=count,
        )
        return state, StepOutput(frame=frame, latent=latent, reward=reward, terminated=terminated)

    @torch.inference_mode()
    def observe(self, state: GenieState, action: Tensor, frame: Tensor) -> GenieState:
        """See ``ObservesFrames.observe``. A simulator with latent actions takes one of them."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: GenieState, action: Tensor, frames: Tensor) -> GenieState:
        """Compute ``observe`` of an action and frames that were checked."""
        encoder, tokens = self.tokenizer.encode_step(state.encoder, frames_to_float(frames))
        actions = self.actions_per_frame(action)
        dynamics, features = self._observe_tokens(state.dynamics, tokens, actions)
        decoder, _ = self.tokenizer.decode_step(state.decoder, tokens)
        return GenieState(
            dynamics=dynamics,
            encoder=encoder,
            decoder=decoder,
            latent=tokens[:, 0],
            features=features,
            seed=state.seed,
            frames_generated=state.frames_generated,
        )

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

    def features(self, state: GenieState) -> Tensor:
        """See ``ProvidesFeatures.features``: of the last frame's tokens."""
        return state.features.float()

    @torch.inference_mode()
    def flatten_latents(self, latent: Tensor) -> Tensor:
        """See ``Simulator.flatten_latents``: the codes of the tokens, as the decoder takes them."""
        return self.tokenizer.quantizer.lookup(latent).flatten(1).float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss.transition_loss``: the cross-entropy of a wholly masked next frame.

        Frames are processed as in play, one by one from cached keys and values.
        """
        tokens, actions, other_actions = (x.to(self.device) for x in (latents.flatten(2), actions, other_actions))
        dynamics, total = self.dynamics, torch.zeros(2, dtype=torch.float64)
        state = dynamics.observe(dynamics.init_state(len(tokens)), tokens[:, :1], None)
        masked = torch.full_like(tokens[:, :1], dynamics.mask_token)
        frames = dynamics.frames_per_latent
        for i in range(tokens.shape[1] - 1):
            truth, step = tokens[:, i + 1 : i + 2], slice(i * frames, (i + 1) * frames)
            for k, conditions in enumerate((actions, other_actions)):
                logits = dynamics.predict_logits(state, masked, conditions[:, step]).float()
                total[k] += F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="sum").item()
            state = dynamics.observe(state, truth, actions[:, step])
        return total

    def _observe_tokens(
        self, state: MaskGITState, tokens: Tensor, actions: Tensor | None
    ) -> tuple[MaskGITState, Tensor]:
        """Add tokens [b, t, h, w] to the state; return it, and the features [b, d] of the last frame."""
        state, features = self.dynamics.observe_with_features(state, tokens.flatten(2), actions)
        return state, features[:, -1]
