"""A diffusion transformer as a simulator: latents are sampled one by one from cached keys and values.

A step samples one latent, which holds k video frames (``DiT.frames_per_latent``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import VideoTokenizer
from vwm.models.dit.guidance import GuidanceLevel, check_part_guidance, part_guidance_levels
from vwm.models.dit.network import DiT, NoisyFrames
from vwm.models.dit.noise_schedule import predicted_clean_and_noise
from vwm.models.dit.policy_heads import PolicyRewardHeads, check_policy_matches_dit
from vwm.models.dit.sampling import (
    CONTEXT_SEED_STREAM,
    FRAME_SEED_STREAM,
    DiffusionSampling,
    check_diffusion_sampling,
    finest_step_index,
    observe_latents,
    sample_latent_frame,
)
from vwm.nn.actions import check_action_space
from vwm.nn.outcome_heads import RewardTerminationHeads, sample_outcomes
from vwm.nn.space_time import TransformerState


class DiTState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        dynamics: keys and values of the past frames.
        encoder: the tokenizer encoder's state, of the frames that were observed, not of those that were generated.
        decoder: the tokenizer decoder's state.
        latent: float [b, h, w, c], the last latent.
        features: float [b, d], of the last latent: the mean of its agent tokens, if any, else of all tokens.
        seed: int64 [b].
    """

    dynamics: TransformerState
    encoder: Any
    decoder: Any
    latent: Tensor
    features: Tensor
    seed: Tensor


class DiTSimulator(VideoSimulator):
    """A tokenizer and a diffusion transformer over its latents: see ``Simulator``.

    Args:
        tokenizer: encodes video to continuous latents, of k frames each after the first one, and decodes them.
        dynamics: the network; causal.
        outcomes: heads for reward and termination; None without them.
        actions: the action space; it must be the dynamics'.
        policy: a cloned policy and reward prediction, which read the agent tokens; None without them.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "outcomes", "policy")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("outcomes", "policy")
    SAMPLING_CLASS = DiffusionSampling
    SAMPLING_BY_PART: ClassVar[tuple[str, ...]] = ("guidance",)
    transition_loss_name = "squared error"

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        dynamics: DiT,
        outcomes: RewardTerminationHeads | None,
        actions: ActionSpace,
        policy: PolicyRewardHeads | None = None,
        **rest: Any,
    ) -> None:
        if not dynamics.transformer.causal:
            raise ValueError(
                "dynamics.causal=False attends to later frames too: it samples whole clips and cannot be played"
            )
        if tokenizer.time_compression != dynamics.frames_per_latent:
            raise ValueError(
                f"the tokenizer makes a latent of {tokenizer.time_compression} frames, the dynamics takes latents of "
                f"{dynamics.frames_per_latent}"
            )
        tokenizer.check_latents_of(dynamics.grid, dynamics.channels)
        if dynamics.embed_action is not None:  # without an embedding, actions are ignored
            check_action_space(dynamics.embed_action, actions)
        if policy is not None:
            check_policy_matches_dit(policy, dynamics)
        super().__init__(tokenizer, dynamics, actions, **rest)
        self.outcomes = None if outcomes is None else outcomes.eval()
        self.policy = None if policy is None else policy.eval()

    def check_sampling(self, sampling: DiffusionSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_diffusion_sampling(self.dynamics, sampling)
        check_part_guidance(self.dynamics, self.spec.actions, sampling.guidance)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[DiTState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch = len(context)
        actions = self.check_context_actions(context_actions, batch, context.shape[1])
        actions = None if self.dynamics.embed_action is None else actions
        video = frames_to_float(self.trim_context(context).to(self.device))
        encoder, latents = self.tokenizer.encode_step(self.tokenizer.init_encoder(batch), video)
        decoder, shown = self.tokenizer.decode_step(self.tokenizer.init_decoder(batch), latents)
        seeds = world_seeds(seed, batch, self.device)
        action_embedding = self.dynamics.embed_previous_actions(actions, batch, latents.shape[1])
        dynamics, features = self._observe_latents(self.dynamics.init_state(batch), latents, action_embedding, seeds)
        state = DiTState(
            dynamics=dynamics, encoder=encoder, decoder=decoder, latent=latents[:, -1], features=features, seed=seeds
        )
        return state, video_to_uint8(shown[:, -1:])[:, 0]

    def advance(self, state: DiTState, action: Tensor, decode: bool) -> tuple[DiTState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is float [b, h, w, c]."""
        action_embedding = self._action_embedding(action)
        seed = fold_in(fold_in(state.seed, FRAME_SEED_STREAM), state.dynamics.position)
        latents = sample_latent_frame(
            self.dynamics, state.dynamics, action_embedding, seed, self.sampling, self._part_guidance_levels(action)
        )
        dynamics, features = self._observe_latents(state.dynamics, latents, action_embedding, state.seed)
        reward, terminated = sample_outcomes(
            self.outcomes, state.features, action_embedding[:, 0], state.seed, state.dynamics.position, features
        )
        # The decoder's state depends on every frame, so it decodes each, even if no pixels are requested.
        decoder, video = self.tokenizer.decode_step(state.decoder, latents.to(self.tokenizer.dtype))
        frame = self.shown_frames(video) if decode else None
        return (
            DiTState(
                dynamics=dynamics,
                encoder=state.encoder,
                decoder=decoder,
                latent=latents[:, 0],
                features=features,
                seed=state.seed,
            ),
            StepOutput(frame=frame, latent=latents[:, 0], reward=reward, terminated=terminated),
        )

    @torch.inference_mode()
    def observe(self, state: DiTState, action: Tensor, frame: Tensor) -> DiTState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: DiTState, action: Tensor, frames: Tensor) -> DiTState:
        """Compute ``observe`` of an action and frames that were checked."""
        encoder, latents = self.tokenizer.encode_step(state.encoder, frames_to_float(frames))
        decoder, _ = self.tokenizer.decode_step(state.decoder, latents)
        action_embedding = self._action_embedding(action)
        dynamics, features = self._observe_latents(state.dynamics, latents, action_embedding, state.seed)
        return DiTState(
            dynamics=dynamics,
            encoder=encoder,
            decoder=decoder,
            latent=latents[:, 0],
            features=features,
            seed=state.seed,
        )

    def features(self, state: DiTState) -> Tensor:
        """See ``ProvidesFeatures.features``: of the last frame's agent tokens, or of all its tokens."""
        return state.features.float()

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss``: the squared error of the clean latent predicted from pure noise.

        The prediction is the network's mean of the next latent, given the past and the actions only. Latents are
        processed as in play, one by one from cached keys and values.
        """
        latents, actions, other_actions = (x.to(self.device) for x in (latents, actions, other_actions))
        dynamics, total = self.dynamics, torch.zeros(2, dtype=torch.float64)
        batch, frames = latents.shape[:2]
        seeds = world_seeds(0, batch, self.device)
        signal = latents.new_zeros(batch, 1)
        state, _ = self._observe_latents(
            dynamics.init_state(batch), latents[:, :1], dynamics.embed_previous_actions(None, batch, 1), seeds
        )
        own, other = (x.unflatten(1, (frames - 1, -1)) for x in (actions, other_actions))
        for i in range(1, frames):
            clean = latents[:, i : i + 1]
            noise = seeded_normal(fold_in(seeds, i), *clean.shape[1:]).to(clean.dtype)
            for k, conditions in enumerate((own, other)):
                action_embedding = self._action_embedding(conditions[:, i - 1])
                noisy = NoisyFrames(
                    latents=noise,
                    signal=signal,
                    step_index=finest_step_index(dynamics, signal),
                    action_embedding=action_embedding,
                )
                output = dynamics.denoise(state, noisy).float()
                predicted = predicted_clean_and_noise(dynamics.prediction, noise, output, signal)[0]
                total[k] += (predicted - clean).double().square().sum().item()
            state, _ = self._observe_latents(state, clean, self._action_embedding(own[:, i - 1]), seeds)
        return total

    def _observe_latents(
        self, state: TransformerState, latents: Tensor, action_embedding: Tensor, seed: Tensor
    ) -> tuple[TransformerState, Tensor]:
        """Add latents [b, t, h, w, c] to the state; return it, and the features [b, d] of the last frame."""
        return observe_latents(
            self.dynamics,
            state,
            latents,
            action_embedding,
            fold_in(seed, CONTEXT_SEED_STREAM),
            self.sampling.context_noise,
            self.sampling.task,
        )

    def _action_embedding(self, action: Tensor) -> Tensor:
        """Embed the action of a step, held [b, ...] or one per frame [b, k, ...]: float [b, 1, d]."""
        if self.dynamics.embed_action is None:
            return self.dynamics.embed_previous_actions(None, len(action), 1)
        return self.dynamics.embed_actions(self.actions_per_frame(action).to(self.device))

    def _part_guidance_levels(self, action: Tensor) -> list[GuidanceLevel] | None:
        """Return the chain of guidance by part for the action of a step; None without it."""
        weights = self.sampling.guidance
        if not isinstance(weights, Mapping):
            return None
        actions = self.actions_per_frame(action).to(self.device)
        return part_guidance_levels(self.dynamics, actions, self.spec.actions, weights)
