"""Training DIAMOND's denoiser on its own frames, and its model of rewards and terminations (arXiv 2405.12399).

Legend: b batch, t time, n past frames, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, seeded_normal, world_seeds
from vwm.core.spaces import ActionSpace
from vwm.data.clips import ClipBatch
from vwm.data.importers.csgo_actions import csgo_action_space
from vwm.models.diamond.denoiser import DiamondDenoiser, Preconditioning
from vwm.models.diamond.games import csgo_columns
from vwm.models.diamond.outcome_model import DiamondOutcomeModel
from vwm.models.diamond.sampling import DiamondSampling, check_diamond_sampling, sample_frame
from vwm.models.diamond.simulator import check_diamond_parts
from vwm.models.diamond.upsampler import rounded_pixels
from vwm.nn.action_pooling import sum_outcomes
from vwm.nn.clip_draws import draw_normal, draw_normal_like, draw_uniform
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import sign_termination_losses
from vwm.nn.training_module import TrainingModule, known_actions
from vwm.tokenizers.pixel_tokenizer import PixelTokenizer


@dataclass(frozen=True)
class NoiseLevelDistribution:
    """Noise levels of the training: log-normal, cut off at both ends.

    Attributes:
        mean, std: of the logarithm. The authors' for Atari; for Counter-Strike the mean is -1.2.
        low, high: lowest and highest level.

    Raises:
        ValueError: a value out of range.
    """

    mean: float = -0.4
    std: float = 1.2
    low: float = 2e-3
    high: float = 20.0

    def __post_init__(self) -> None:
        if not self.std > 0 or not 0 < self.low < self.high:
            raise ValueError(f"noise levels need std > 0 and 0 < low < high, got {self}")

    def draw(self, batch: int, device: torch.device) -> Tensor:
        """Draw a level for each clip, float32 [b]."""
        return (draw_normal((batch,), device) * self.std + self.mean).exp().clamp(self.low, self.high)


class DiamondModule(TrainingModule):
    """Learn to denoise the next frame given the last ones, of which the later ones are the network's own.

    A clip of n + s frames gives s frames to denoise, one after the other: each denoised frame takes the recorded one's
    place in the past of the next, so that the network learns to continue from its own errors. The model of outcomes
    reads all frames of the clip. The action that ends an episode leads to no recorded frame; in its place, for every
    clip, it reads a frame that the denoiser samples in one step.

    Args:
        dynamics: the denoiser; no upsampler.
        optimizer: learning rate and schedule.
        image_size: (height, width) of frames.
        outcomes: the model of rewards and terminations; None without. It requires rewards.
        noise_levels: of the training.
        short_context: share of the clips whose first frames are hidden, as before the start of an episode.
        sampling_steps, sampling_order: of sample videos and of the exported world; see ``DiamondSampling``.
        context_frames: true frames at the start of a sample video.

    Raises:
        ValueError: the networks do not fit each other, or a share is out of range.
    """

    def __init__(
        self,
        dynamics: DiamondDenoiser,
        optimizer: OptimizerConfig,
        image_size: tuple[int, int] = (64, 64),
        outcomes: DiamondOutcomeModel | None = None,
        noise_levels: NoiseLevelDistribution = NoiseLevelDistribution(),
        short_context: float = 0.1,
        sampling_steps: int = 3,
        sampling_order: int = 1,
        context_frames: int = 4,
    ) -> None:
        super().__init__()
        if not 0 <= short_context <= 1 or context_frames < 1:
            raise ValueError(
                f"short_context={short_context} must be between 0 and 1, context_frames={context_frames} at least 1"
            )
        self.tokenizer = PixelTokenizer(image_size, pixel_std=1.0).requires_grad_(False)
        self.action_space = (
            csgo_action_space() if dynamics.action_columns else ActionSpace("discrete", dynamics.num_actions)
        )
        check_diamond_parts(self.tokenizer, dynamics, outcomes, None, self.action_space)
        self.sampling = DiamondSampling(steps=sampling_steps, order=sampling_order)
        check_diamond_sampling(dynamics, self.sampling)
        self.dynamics = dynamics
        self.outcomes = outcomes
        self.optimizer = optimizer
        self.noise_levels = noise_levels
        self.short_context = short_context
        self.context_frames = context_frames

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log."""
        frames, actions, known = self._read(batch)
        n = self.dynamics.past_frames
        past, taken = self._hide_first(frames, actions) if self.training else (frames, actions)
        losses = []
        for i in range(frames.shape[1] - n):
            loss, denoised = self._denoise(past[:, i : i + n], taken[:, i : i + n], frames[:, i + n], known)
            past = torch.cat((past[:, : i + n], denoised[:, None], past[:, i + n + 1 :]), dim=1)
            losses.append(loss)
        loss = torch.stack(losses).mean()
        logs = {"denoising_loss": loss.detach()}
        if self.outcomes is not None:
            reward, end = self._outcome_losses(batch, frames, actions)
            loss, logs = loss + reward + end, logs | {"reward_loss": reward.detach(), "end_loss": end.detach()}
        return loss, logs

    def _denoise(self, past: Tensor, actions: Tensor, clean: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss of denoising a frame [b, 3, h, w], and the denoised frame, without a gradient."""
        sigma = self.noise_levels.draw(len(clean), clean.device)
        past_sigma = None
        if self.dynamics.noisy_past:
            past_sigma = self.noise_levels.draw(len(clean), clean.device)
            past = self._add_noise(past, past_sigma)
        scales = self.dynamics.precondition(sigma)
        noisy = self._add_noise(clean, sigma)
        predicted = self.dynamics(noisy, scales, past, actions, past_sigma)
        errors = (predicted - self._target(clean, noisy, scales)).square().flatten(1).mean(1)
        loss = errors.mean() if known is None else (errors * known).sum() / known.sum().clamp(min=1)
        return loss, self.dynamics.clean(noisy, predicted.detach(), scales)

    def _target(self, clean: Tensor, noisy: Tensor, scales: Preconditioning) -> Tensor:
        """Return what the network should predict, of unit variance."""
        return (clean - scales.skip * noisy) / scales.out

    def _add_noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Add noise of levels [b] to frames [b, ..., h, w], and the noise that all pixels of a channel share."""
        shared = draw_normal_like(x[..., :1, :1]) * self.dynamics.offset_noise
        return x + draw_normal_like(x) * sigma.view(-1, *[1] * (x.ndim - 1)) + shared

    def _hide_first(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Make the first frames of some clips gray and their actions 0, all but the last of the first n at most."""
        batch, n = len(frames), self.dynamics.past_frames
        chance, length = draw_uniform((batch, 2), frames.device).unbind(1)
        hidden = (chance < self.short_context) * (1 + (length * (n - 1)).long()).clamp(max=n - 1)
        shown = torch.arange(frames.shape[1], device=frames.device) >= hidden[:, None]
        return tuple(x * shown.view(*shown.shape, *[1] * (x.ndim - 2)) for x in (frames, actions))  # type: ignore[return-value]

    def _outcome_losses(self, batch: ClipBatch, frames: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies of the signs of rewards and of terminations, of all transitions of the clips."""
        if batch.rewards is None:
            raise ValueError("outcomes need rewards: name them in data.fields, or set outcomes to null")
        assert self.outcomes is not None
        after = torch.cat((frames[:, 1:], self._frame_after(frames, actions)[:, None]), dim=1)
        _, logits = self.outcomes(self.outcomes.init_memory(len(frames)), frames, actions, after)
        outcomes = sum_outcomes(batch.rewards, batch.terminated, 1)
        return sign_termination_losses(logits.reward, logits.termination, *outcomes)

    @torch.no_grad()
    def _frame_after(self, frames: Tensor, actions: Tensor) -> Tensor:
        """Sample the frame to which the last action of clips leads, in one step: float [b, 3, h, w]."""
        n = self.dynamics.past_frames
        noise = [draw_normal_like(frames[:, 0])]
        past, taken, once = frames[:, -n:], actions[:, -n:], DiamondSampling(steps=1)
        return sample_frame(self.dynamics, past, taken, noise.__getitem__, noise.__getitem__, once)

    def _read(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return frames [b, t, 3, h, w], what the networks read of actions [b, t, ...], and which clips are labeled."""
        if batch.actions is None:
            raise ValueError("DIAMOND learns from actions, and these shards hold none (data.fields)")
        frames, n = frames_to_float(batch.frames), self.dynamics.past_frames
        if frames.shape[1] <= n:
            raise ValueError(
                f"clips of {frames.shape[1]} frames hold none to predict after dynamics.past_frames={n}: raise "
                "data.clip_length"
            )
        self.tokenizer.check_video(frames)
        if self.checks_values(batch.actions):
            self._check_actions(batch.actions)
        known = known_actions(batch, 1)
        if known is not None:
            known = known.flatten(1).all(1)
        return frames, csgo_columns(batch.actions) if self.dynamics.action_columns else batch.actions, known

    def _check_actions(self, actions: Tensor) -> None:
        """Raise ValueError unless actions [b, t, ...] are of the networks' space."""
        space = self.action_space
        if space.is_composite:
            space.check_rows(actions)
        elif actions.is_floating_point() or actions.ndim != 2:
            raise ValueError(f"dynamics.num_actions={space.size}, and the data's actions are {list(actions.shape[2:])}")
        elif int(actions.min()) < 0 or int(actions.max()) >= space.size:
            raise ValueError(
                f"dynamics.num_actions={space.size}, and the data holds action {int(actions.max())}: set it to the "
                "number of actions"
            )

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how much higher it is with shuffled actions."""
        return self.losses_and_shuffle_ratio(batch, index, "denoising_loss")

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the pixels' tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        trained: dict[str, nn.Module] = {"dynamics": self.dynamics}
        return trained if self.outcomes is None else trained | {"outcomes": self.outcomes}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's first frames, continued under its own actions."""
        frames, actions, _ = self._read(batch)
        n, (b, t) = self.dynamics.past_frames, frames.shape[:2]
        start, seeds = min(self.context_frames, t - 1), world_seeds(0, b, frames.device)
        video = torch.cat((frames.new_zeros(b, n, *frames.shape[2:]), frames[:, :start]), dim=1)  # gray before
        taken = torch.cat((actions.new_zeros(b, n, *actions.shape[2:]), actions), dim=1)
        for i in range(start, t):
            noise = [seeded_normal(fold_in(seeds, i), *frames.shape[2:]).to(frames.dtype)]  # drawn once: no churn
            past, led = video[:, i : i + n], taken[:, i : i + n]
            frame = sample_frame(self.dynamics, past, led, noise.__getitem__, noise.__getitem__, self.sampling)
            video = torch.cat((video, rounded_pixels(frame)[:, None]), dim=1)
        return video_to_uint8(video[:, n:])
