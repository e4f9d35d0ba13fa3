"""An autoregressive token world as a simulator: tokens are sampled one by one from cached keys and values."""

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
from vwm.core.tokenizer import TokenizerState, VideoTokenizer
from vwm.models.autoregressive.dynamics import AutoregressiveDynamics, AutoregressiveState
from vwm.models.autoregressive.outcomes import OutcomeHeads, sample_action_outcomes
from vwm.models.autoregressive.sampling import TokenSampling, check_token_sampling, sample_next_frame_tokens
from vwm.nn.actions import check_action_space
from vwm.tokenizers.token_dynamics import check_equal_settings, token_setting_pairs


class AutoregressiveWorldState(NamedTuple):
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

    dynamics: AutoregressiveState
    encoder: TokenizerState
    decoder: TokenizerState
    latent: Tensor
    features: Tensor
    seed: Tensor
    frames_generated: Tensor


class AutoregressiveSimulator(VideoSimulator):
    """A tokenizer with a codebook, and dynamics that predict token by token: see ``Simulator``.

    Args:
        tokenizer: encodes video to tokens, of r frames each after the first latent, and decodes them.
        dynamics: predicts the next token from tokens and actions.
        actions: the action space, which must be the dynamics'.
        outcomes: heads for reward and termination; None without them.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "outcomes")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("outcomes",)
    SAMPLING_CLASS = TokenSampling
    transition_loss_name = "cross-entropy"

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        dynamics: AutoregressiveDynamics,
        actions: ActionSpace,
        outcomes: OutcomeHeads | None = None,
        **rest: Any,
    ) -> None:
        check_token_parts(tokenizer, dynamics, outcomes)
        check_action_space(dynamics.embed_action, actions)
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.outcomes = None if outcomes is None else outcomes.eval()

    def check_sampling(self, sampling: TokenSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_token_sampling(sampling)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[AutoregressiveWorldState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, given = context.shape[:2]
        context_actions = self.check_context_actions(context_actions, batch, given)
        video = frames_to_float(self.trim_context(context).to(self.device))
        encoder, tokens = self.tokenizer.encode_step(self.tokenizer.init_encoder(batch), video)
        dynamics, features = self._observe_tokens(self.dynamics.init_state(batch), tokens[:, :1], None)
        if tokens.shape[1] > 1:
            dynamics, features = self._observe_tokens(dynamics, tokens[:, 1:], context_actions)
        decoder, video = self.tokenizer.decode_step(self.tokenizer.init_decoder(batch), tokens)
        seeds = world_seeds(seed, batch, self.device)
        state = AutoregressiveWorldState(
            dynamics=dynamics,
            encoder=encoder,
            decoder=decoder,
            latent=tokens[:, -1],
            features=features,
            seed=seeds,
            frames_generated=torch.zeros_like(seeds),
        )
        return state, video_to_uint8(video[:, -1:])[:, 0]

    def advance(
        self, state: AutoregressiveWorldState, action: Tensor, decode: bool
    ) -> tuple[AutoregressiveWorldState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is the frame's tokens, int64 [b, h, w]."""
        step, dynamics = state.frames_generated, self.dynamics
        action_embedding = dynamics.embed_actions(self.actions_per_frame(action))[:, 0]
        frame, output = dynamics.begin_frame(state.dynamics, action_embedding)
        reward, terminated = sample_action_outcomes(self.outcomes, output, action_embedding, state.seed, step)
        after, tokens, features = sample_next_frame_tokens(
            dynamics, frame, output, fold_in(state.seed, step), self.sampling
        )
        latent = tokens.unflatten(-1, self.tokenizer.grid)
        # The decoder's state may depend on every frame, so it decodes each, even if no pixels are requested.
        decoder, video = self.tokenizer.decode_step(state.decoder, latent[:, None])
        state = state._replace(
            dynamics=after, decoder=decoder, latent=latent, features=features, frames_generated=step + 1
        )
        shown = self.shown_frames(video) if decode else None
        return state, StepOutput(frame=shown, latent=latent, reward=reward, terminated=terminated)

    @torch.inference_mode()
    def observe(self, state: AutoregressiveWorldState, action: Tensor, frame: Tensor) -> AutoregressiveWorldState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: AutoregressiveWorldState, action: Tensor, frames: Tensor) -> AutoregressiveWorldState:
        """Compute ``observe`` of an action and frames that were checked."""
        encoder, tokens = self.tokenizer.encode_step(state.encoder, frames_to_float(frames))
        dynamics, features = self._observe_tokens(state.dynamics, tokens, self.actions_per_frame(action))
        decoder, _ = self.tokenizer.decode_step(state.decoder, tokens)
        return state._replace(
            dynamics=dynamics, encoder=encoder, decoder=decoder, latent=tokens[:, 0], features=features
        )

    def features(self, state: AutoregressiveWorldState) -> Tensor:
        """See ``ProvidesFeatures.features``: of the last frame's tokens."""
        return state.features.float()

    @torch.inference_mode()
    def flatten_latents(self, latent: Tensor) -> Tensor:
        """See ``Simulator.flatten_latents``: the codes of the tokens, as the decoder takes them."""
        return self.tokenizer.quantizer.lookup(latent).flatten(1).float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss.transition_loss``: the cross-entropy of the next frame's true tokens.

        Frames are processed as in play, one by one from cached keys and values.
        """
        tokens, actions, other_actions = (x.to(self.device) for x in (latents.flatten(2), actions, other_actions))
        dynamics, total = self.dynamics, torch.zeros(2, dtype=torch.float64)
        state, frames = dynamics.init_state(len(tokens)), dynamics.frames_per_latent
        state = dynamics.observe(state, tokens[:, :1], None)
        for i in range(tokens.shape[1] - 1):
            truth, step = tokens[:, i + 1], slice(i * frames, (i + 1) * frames)
            for k, conditions in enumerate((actions, other_actions)):
                logits = dynamics.predict_logits(state, truth, conditions[:, step]).float()
                total[k] += F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum").item()
            state = dynamics.observe(state, truth[:, None], actions[:, step])
        return total

    def _observe_tokens(
        self, state: AutoregressiveState, tokens: Tensor, actions: Tensor | None
    ) -> tuple[AutoregressiveState, Tensor]:
        """Add tokens [b, t, h, w] to the state; return it, and the features [b, d] of the last frame."""
        state, features = self.dynamics.observe_with_features(state, tokens.flatten(2), actions)
        return state, features[:, -1]


def check_token_parts(
    tokenizer: VideoTokenizer, dynamics: AutoregressiveDynamics, outcomes: OutcomeHeads | None
) -> None:
    """Raise ValueError unless the networks of a world fit each other, naming both values."""
    pairs = token_setting_pairs(tokenizer, dynamics)
    if outcomes is not None:
        if outcomes.config.get("sees_next"):
            raise ValueError(
                "rewards are read at the token of the action, before the next frame: set outcomes.sees_next=false"
            )
        pairs.append(("outcomes.width", outcomes.config.width, "dynamics.width", dynamics.config.width))
    check_equal_settings(pairs)
