"""DIAMOND's world as a simulator: the next frame is denoised from the last frames and actions.

Legend: b batch, n past frames, t time, h w pixels, a columns of an action.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_simulator import VideoSimulator
from vwm.core.seeds import fold_in, seeded_normal, seeded_uniform, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.spaces import ActionSpace
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.importers.csgo_actions import csgo_action_space
from vwm.models.diamond.denoiser import DiamondDenoiser, uniform_sigma
from vwm.models.diamond.games import csgo_columns
from vwm.models.diamond.outcome_model import DiamondOutcomeModel, OutcomeLogits, OutcomeMemory
from vwm.models.diamond.policy_network import DiamondPolicyNetwork
from vwm.models.diamond.sampling import DiamondSampling, check_diamond_sampling, sample_frame
from vwm.models.diamond.upsampler import DiamondUpsampler, UpsamplerState, rounded_pixels

FRAME_STREAM, PAST_STREAM, REWARD_STREAM, TERMINATION_STREAM = -12, -13, -14, -15
"""Folded into a simulation's seed for what is drawn at a step."""


class DiamondState(NamedTuple):
    """The state of a batch of simulations, one entry each.

    Attributes:
        frames: float [b, n, h, w, 3] in [-1, 1], the last latents; 0 (gray) before the first one, as in training.
        actions: int64 [b, n - 1], or columns [b, n - 1, a]: ``actions[:, i]`` leads from frame i to i + 1; zeros before
            the first one.
        memory: of the model of rewards and terminations; empty without one.
        decoder: the state of the tokenizer's decoder.
        position: int64 [b], number of frames so far.
        seed: int64 [b].
    """

    frames: Tensor
    actions: Tensor
    memory: OutcomeMemory | tuple[()]
    decoder: UpsamplerState | tuple[()]
    position: Tensor
    seed: Tensor

    @property
    def latent(self) -> Tensor:
        """See ``Simulator.latent``."""
        return self.frames[:, -1]


class DiamondSimulator(VideoSimulator):
    """DIAMOND's networks: see ``Simulator``.

    ``latent`` of a step is the frame as the denoiser sees it, float [b, h, w, 3] in [-1, 1]. Rewards are -1, 0 or 1:
    the published models learned signs. Rewards and terminations are sampled. The actions of a context that are not
    given count as the first action, which does nothing, and for columns as no key and a mouse that rests.

    Args:
        tokenizer: pixels that are not compressed (``PixelTokenizer`` of mean 0 and deviation 1), or the upsampler.
        dynamics: the denoiser.
        outcomes: the model of rewards and terminations; None without.
        actions: the action space; it must be the networks'.
        trained_policy: the policy that was trained in the world; None without.
        **rest: see ``VideoSimulator``.

    Raises:
        ValueError: the networks do not fit each other.
    """

    NETWORK_NAMES: ClassVar[tuple[str, ...]] = ("tokenizer", "dynamics", "outcomes", "trained_policy")
    OPTIONAL_NETWORKS: ClassVar[tuple[str, ...]] = ("outcomes", "trained_policy")
    SAMPLING_CLASS = DiamondSampling
    transition_loss_name = "squared error"
    dynamics: DiamondDenoiser

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        dynamics: DiamondDenoiser,
        outcomes: DiamondOutcomeModel | None,
        actions: ActionSpace,
        trained_policy: DiamondPolicyNetwork | None = None,
        **rest: Any,
    ) -> None:
        check_diamond_parts(tokenizer, dynamics, outcomes, trained_policy, actions)
        super().__init__(tokenizer, dynamics, actions, **{"context_frames": dynamics.past_frames, **rest})
        self.outcomes = None if outcomes is None else outcomes.eval()
        self.trained_policy = None if trained_policy is None else trained_policy.eval()

    def check_sampling(self, sampling: DiamondSampling) -> None:
        """See ``NetworkSimulator.check_sampling``."""
        check_diamond_sampling(self.dynamics, sampling)

    @torch.inference_mode()
    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[DiamondState, Tensor]:
        """See ``Simulator.reset``."""
        self.check_context(context)
        batch, frames = context.shape[:2]
        given = self.check_context_actions(context_actions, batch, frames)
        if given is None:
            shape = (batch, frames - 1, *self.spec.actions.shape)
            given = torch.zeros(shape, dtype=self.spec.actions.dtype, device=self.device)
        video = frames_to_float(context.to(self.device))
        latents, actions = self.tokenizer.encode(video), self._conditions(given)
        state = self._empty_state(actions, world_seeds(seed, batch, self.device), latents)
        state = self._extend(state, actions, latents, video)
        return state, video_to_uint8(video[:, -1:])[:, 0]

    def advance(self, state: DiamondState, action: Tensor, decode: bool) -> tuple[DiamondState, StepOutput]:
        """See ``NetworkSimulator.advance``. ``latent`` is float [b, h, w, 3]."""
        condition = self._conditions(action)
        past, actions = state.frames.permute(0, 1, 4, 2, 3), torch.cat((state.actions, condition[:, None]), dim=1)
        seeds = [fold_in(fold_in(state.seed, stream), state.position) for stream in (FRAME_STREAM, PAST_STREAM)]

        def noise(draw: int) -> Tensor:
            return seeded_normal(fold_in(seeds[0], draw), *past.shape[2:]).to(past.dtype)

        def past_noise(draw: int) -> Tensor:
            return seeded_normal(fold_in(seeds[1], draw), *past.shape[1:]).to(past.dtype)

        frame = sample_frame(self.dynamics, past, actions, noise, past_noise, self.sampling)
        latent = rounded_pixels(frame).permute(0, 2, 3, 1)
        # The decoder's state depends on every frame, so it decodes each, even if no pixels are requested.
        decoder, video = self.tokenizer.decode_step(state.decoder, latent[:, None].to(self.tokenizer.dtype))
        memory, reward, terminated = self._sample_outcomes(state, condition, latent)
        after = DiamondState(
            frames=torch.cat((state.frames, latent[:, None]), dim=1)[:, 1:],
            actions=actions[:, 1:],
            memory=memory,
            decoder=decoder,
            position=state.position + 1,
            seed=state.seed,
        )
        shown = self.shown_frames(video) if decode else None
        return after, StepOutput(frame=shown, latent=latent, reward=reward, terminated=terminated)

    @torch.inference_mode()
    def observe(self, state: DiamondState, action: Tensor, frame: Tensor) -> DiamondState:
        """See ``ObservesFrames.observe``."""
        return self.run_observation(type(self)._absorb, state, action, frame)

    def _absorb(self, state: DiamondState, action: Tensor, frames: Tensor) -> DiamondState:
        """Compute ``observe`` of an action and frames that were checked."""
        video = frames_to_float(frames)
        return self._extend(state, self._conditions(action)[:, None], self.tokenizer.encode(video), video)

    @torch.inference_mode()
    def transition_loss(self, latents: Tensor, actions: Tensor, other_actions: Tensor) -> Tensor:
        """See ``MeasuresTransitionLoss``: the squared error of the clean frame predicted from pure noise.

        The prediction, at the sampler's highest noise level, is the network's mean of the next frame, given the past
        and the actions only.
        """
        latents, own, other = (x.to(self.device) for x in (latents, actions, other_actions))
        own, other = self._conditions(own), self._conditions(other)
        batch, frames = latents.shape[:2]
        seeds = world_seeds(0, batch, self.device)
        state = self._extend(self._empty_state(own, seeds, latents), own[:, :0], latents[:, :1], None)
        total = torch.zeros(2, dtype=torch.float64)
        for i in range(1, frames):
            clean = latents[:, i].permute(0, 3, 1, 2)
            start = seeded_normal(fold_in(seeds, i), *clean.shape[1:]).to(clean.dtype) * self.sampling.sigma_max
            for k, conditions in enumerate((own, other)):
                taken = torch.cat((state.actions, conditions[:, i - 1 : i]), dim=1)
                predicted = self._predict_clean(state, taken, start)
                total[k] += (predicted - clean).double().square().sum().item()
            state = self._extend(state, own[:, i - 1 : i], latents[:, i : i + 1], None)
        return total

    @property
    def has_trained_policy(self) -> bool:
        """See ``HasTrainedPolicy``."""
        return self.trained_policy is not None

    def init_policy(self, batch: int) -> tuple[Tensor, Tensor]:
        """See ``HasTrainedPolicy.init_policy``."""
        assert self.trained_policy is not None, "has_trained_policy says whether there is a policy"
        return self.trained_policy.init_memory(batch)

    @torch.inference_mode()
    def run_policy(self, memory: tuple[Tensor, Tensor], frames: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """See ``HasTrainedPolicy.run_policy``."""
        assert self.trained_policy is not None, "has_trained_policy says whether there is a policy"
        output = self.trained_policy(memory, frames_to_float(frames[:, None].to(self.device))[:, 0])
        return output.memory, output.logits

    def _predict_clean(self, state: DiamondState, actions: Tensor, noisy: Tensor) -> Tensor:
        """Denoise the next frame once from the highest noise level: float [b, 3, h, w]."""
        scales = self.dynamics.precondition(uniform_sigma(self.sampling.sigma_max, noisy))
        past = state.frames.permute(0, 1, 4, 2, 3)
        return self.dynamics.clean(noisy, self.dynamics(noisy, scales, past, actions), scales)

    def _conditions(self, actions: Tensor) -> Tensor:
        """Convert actions to what the networks read: int64 [...], or columns [..., a]."""
        return csgo_columns(actions) if self.dynamics.action_columns else actions

    def _empty_state(self, actions: Tensor, seeds: Tensor, latents: Tensor) -> DiamondState:
        """Return the state before the first frame of worlds with such conditions [b, t, ...] and latents."""
        batch, n = len(seeds), self.dynamics.past_frames
        return DiamondState(
            frames=latents.new_zeros(batch, n, *latents.shape[2:]),
            actions=actions.new_zeros(batch, n - 1, *actions.shape[2:]),
            memory=() if self.outcomes is None else self.outcomes.init_memory(batch),
            decoder=self._seeded_decoder(seeds),
            position=torch.zeros_like(seeds),
            seed=seeds,
        )

    def _seeded_decoder(self, seeds: Tensor) -> UpsamplerState | tuple[()]:
        state = self.tokenizer.init_decoder(len(seeds))
        return state._replace(seed=seeds) if isinstance(state, UpsamplerState) else ()

    def _extend(self, state: DiamondState, actions: Tensor, latents: Tensor, video: Tensor | None) -> DiamondState:
        """Add real frames: latents [b, t, h, w, 3] and their video, and the actions that led to all but the first.

        In a state that holds frames already, the first latent has an action too. Without ``video``, the decoder's state
        stays as it is.
        """
        n, memory, decoder = self.dynamics.past_frames, state.memory, state.decoder
        frames = torch.cat((state.frames, latents), dim=1)
        if self.outcomes is not None and actions.shape[1]:
            before = frames[:, -actions.shape[1] - 1 : -1]
            assert isinstance(memory, OutcomeMemory)
            memory, _ = self._predict_outcomes(memory, before, actions, frames[:, -actions.shape[1] :])
        if isinstance(self.tokenizer, DiamondUpsampler) and video is not None:
            assert isinstance(decoder, UpsamplerState)
            decoder = self.tokenizer.observe(decoder, video)
        return DiamondState(
            frames=frames[:, -n:],
            actions=torch.cat((state.actions, actions), dim=1)[:, actions.shape[1] :],
            memory=memory,
            decoder=decoder,
            position=state.position + latents.shape[1],
            seed=state.seed,
        )

    def _predict_outcomes(
        self, memory: OutcomeMemory, frames: Tensor, actions: Tensor, next_frames: Tensor
    ) -> tuple[OutcomeMemory, OutcomeLogits]:
        """Predict the outcomes of transitions [b, t] between latents [b, t, h, w, 3]."""
        assert self.outcomes is not None
        before, after = (x.permute(0, 1, 4, 2, 3) for x in (frames, next_frames))
        predicted: tuple[OutcomeMemory, OutcomeLogits] = self.outcomes(memory, before, actions, after)
        return predicted

    def _sample_outcomes(
        self, state: DiamondState, action: Tensor, latent: Tensor
    ) -> tuple[OutcomeMemory | tuple[()], Tensor, Tensor]:
        """Return the memory, the reward, float32 [b], and the termination, bool [b], of a step to a latent."""
        if self.outcomes is None:
            zeros = torch.zeros(len(action), device=self.device)
            return (), zeros, zeros.bool()
        assert isinstance(state.memory, OutcomeMemory)
        memory, logits = self._predict_outcomes(state.memory, state.frames[:, -1:], action[:, None], latent[:, None])
        drawn = []
        for stream, scores in ((REWARD_STREAM, logits.reward), (TERMINATION_STREAM, logits.termination)):
            chance = seeded_uniform(fold_in(fold_in(state.seed, stream), state.position))
            cumulative = scores[:, 0].float().softmax(-1).cumsum(-1)[:, :-1]
            drawn.append((chance[:, None] > cumulative).sum(-1))
        return memory, drawn[0].float() - 1, drawn[1] > 0


def check_diamond_parts(
    tokenizer: VideoTokenizer,
    dynamics: DiamondDenoiser,
    outcomes: DiamondOutcomeModel | None,
    trained_policy: DiamondPolicyNetwork | None,
    actions: ActionSpace,
) -> None:
    """Raise ValueError unless the parts of a world fit each other."""
    if tokenizer.time_compression != 1 or tokenizer.channels != 3:
        raise ValueError(
            f"DIAMOND's latents are frames of 3 channels: the tokenizer gives {tokenizer.channels} channels and "
            f"{tokenizer.time_compression} frames a latent"
        )
    if dynamics.upsampling:
        raise ValueError("dynamics.upsampling: an upsampler belongs into the tokenizer, not the dynamics")
    if dynamics.action_columns:
        if not actions.fits(csgo_action_space()):
            raise ValueError(f"the dynamics takes {csgo_action_space()}, not {actions}")
    elif (actions.kind, actions.size) != ("discrete", dynamics.num_actions):
        raise ValueError(f"the dynamics takes {dynamics.num_actions} discrete actions, not {actions}")
    for name, part in (("outcomes", outcomes), ("trained_policy", trained_policy)):
        if part is None:
            continue
        if part.image_size != tuple(tokenizer.grid) or part.num_actions != dynamics.num_actions:
            raise ValueError(
                f"{name} takes frames of {part.image_size} and {part.num_actions} actions, the dynamics of "
                f"{tuple(tokenizer.grid)} and {dynamics.num_actions}"
            )
        if dynamics.action_columns:
            raise ValueError(f"{name} takes discrete actions only")
