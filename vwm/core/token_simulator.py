"""What simulators over a tokenizer's codebook share: their state, resets, observed frames and the loss of a transition.

Legend: b batch, t latents, h w tokens of a latent, n = h w, d width, r frames per latent.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.tokenizer import TokenizerState


class TokenWorldState(NamedTuple):
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

    dynamics: Any
    encoder: TokenizerState
    decoder: TokenizerState
    latent: Tensor
    features: Tensor
    seed: Tensor
    frames_generated: Tensor


class TokenSimulator(VideoSimulator):
    """A tokenizer with a codebook, and dynamics over its tokens with a state of its own; see ``VideoSimulator``.

    The dynamics has ``init_state``, ``observe``, ``observe_with_features`` and ``frames_per_latent``.
    """

    transition_loss_name = "cross-entropy"
    dynamics: Any

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[TokenWorldState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, given = context.shape[:2]
        context_actions = self.check_context_actions(context_actions, batch, given)
        video = frames_to_float(self.trim_context(context).to(self.device))
        encoder, tokens = self.tokenizer.encode_step(self.tokenizer.init_encoder(batch), video)
        dynamics, features = self._observe_tokens(self.dynamics.init_state(batch), tokens[:, :1], None)
        if tokens.shape[1] > 1:
            between = self.complete_context_actions(video, context_actions)
            dynamics, features = self._observe_tokens(dynamics, tokens[:, 1:], between)
        decoder, shown = self.tokenizer.decode_step(self.tokenizer.init_decoder(batch), tokens)
        seeds = world_seeds(seed, batch, self.device)
        state = TokenWorldState(
            dynamics=dynamics,
            encoder=encoder,
            decoder=decoder,
            latent=tokens[:, -1],
            features=features,
            seed=seeds,
            frames_generated=torch.zeros_like(seeds),
        )
        return state, video_to_uint8(shown[:, -1:])[:, 0]

    def complete_context_actions(self, video: Tensor, actions: Tensor | None) -> Tensor | None:
        """Return the actions between the frames of a context, inferred where they are unknown and a network infers."""
        return actions

    @torch.inference_mode()
    def observe(self, state: TokenWorldState, action: Tensor, frame: Tensor) -> TokenWorldState:
        """See ``ObservesFrames.observe``. A simulator with latent actions takes one of them."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: TokenWorldState, action: Tensor, frames: Tensor) -> TokenWorldState:
        """Compute ``observe`` of an action and frames that were checked."""
        encoder, tokens = self.tokenizer.encode_step(state.encoder, frames_to_float(frames))
        dynamics, features = self._observe_tokens(state.dynamics, tokens, self.actions_per_frame(action))
        decoder, _ = self.tokenizer.decode_step(state.decoder, tokens)
        return state._replace(
            dynamics=dynamics, encoder=encoder, decoder=decoder, latent=tokens[:, 0], features=features
        )

    def show_tokens(
        self,
        state: TokenWorldState,
        dynamics: Any,
        tokens: Tensor,
        features: Tensor,
        outcomes: tuple[Tensor, Tensor],
        decode: bool,
    ) -> tuple[TokenWorldState, StepOutput]:
        """Return the state after a generated latent, and what it shows.

        Args:
            state: before it.
            dynamics: the dynamics' state after it.
            tokens: int64 [b, n].
            features: float [b, d].
            outcomes: reward and termination of the step, [b] each.
            decode: see ``Simulator.step``.
        """
        latent = tokens.unflatten(-1, self.tokenizer.grid)
        # The decoder's state may depend on every frame, so it decodes each, even if no pixels are requested.
        decoder, video = self.tokenizer.decode_step(state.decoder, latent[:, None])
        after = state._replace(
            dynamics=dynamics,
            decoder=decoder,
            latent=latent,
            features=features,
            frames_generated=state.frames_generated + 1,
        )
        reward, terminated = outcomes
        shown = self.shown_frames(video) if decode else None
        return after, StepOutput(frame=shown, latent=latent, reward=reward, terminated=terminated)

    def features(self, state: TokenWorldState) -> Tensor:
        """See ``ProvidesFeatures.features``: of the last frame's tokens."""
        return state.features.float()

    @torch.inference_mode()
    def flatten_latents(self, latent: Tensor) -> Tensor:
        """See ``Simulator.flatten_latents``: the codes of the tokens, as the decoder takes them."""
        return self.tokenizer.quantizer.lookup(latent).flatten(1).float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss.transition_loss``: the cross-entropy of ``next_frame_logits``.

        Frames are processed as in play, one by one from cached keys and values.
        """
        tokens, actions, other_actions = (x.to(self.device) for x in (latents.flatten(2), actions, other_actions))
        dynamics, total = self.dynamics, torch.zeros(2, dtype=torch.float64)
        state, frames = dynamics.init_state(len(tokens)), dynamics.frames_per_latent
        state = dynamics.observe(state, tokens[:, :1], None)
        for i in range(tokens.shape[1] - 1):
            truth, step = tokens[:, i + 1 : i + 2], slice(i * frames, (i + 1) * frames)
            for k, conditions in enumerate((actions, other_actions)):
                logits = self.next_frame_logits(state, truth, conditions[:, step]).float()
                total[k] += F.cross_entropy(logits.flatten(0, -2), truth.flatten(), reduction="sum").item()
            state = dynamics.observe(state, truth, actions[:, step])
        return total

    @abstractmethod
    def next_frame_logits(self, state: Any, truth: Tensor, actions: Tensor) -> Tensor:
        """Return the logits of the next frame's tokens.

        Args:
            state: the dynamics' state before it.
            truth: int64 [b, 1, n], its true tokens, of which a token may see those before it.
            actions: of the frame, [b, r, ...].

        Returns:
            float [b, ..., n, codes].
        """

    def _observe_tokens(self, state: Any, tokens: Tensor, actions: Tensor | None) -> tuple[Any, Tensor]:
        """Add tokens [b, t, h, w] to the state; return it, and the features [b, d] of the last frame."""
        state, features = self.dynamics.observe_with_features(state, tokens.flatten(2), actions)
        return state, features[:, -1]
