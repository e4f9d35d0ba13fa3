"""Training a diffusion transformer over a frozen tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vwm.core.components import load_pretrained_weights
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.models.dit.network import DiT, NoisyFrames, select_clips
from vwm.models.dit.noise_schedule import add_noise
from vwm.models.dit.objectives import DiffusionObjective
from vwm.models.dit.sampling import (
    CONTEXT_SEED_STREAM,
    FRAME_SEED_STREAM,
    DiffusionSampling,
    check_diffusion_sampling,
    finest_step_index,
    observe_latents,
    sample_latent_clip,
    sample_latent_frame,
)
from vwm.nn.loss_normalizer import LossNormalizer
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.training_module import TrainingModule, shuffle_actions
from vwm.tokenizers.loading import load_tokenizer


class DiTModule(TrainingModule):
    """Learn to continue video under actions.

    Args:
        tokenizer: a trained tokenizer with continuous latents: a bundle, its ``tokenizer`` folder, or that of a
            diffusers VAE; or one that needs no training (``PixelTokenizer``).
        dynamics: the network.
        objective: what it learns from.
        optimizer: learning rate and schedule.
        context: what a noisy frame sees of the past in training: ``clean`` (past frames with a little noise, as in
            play; costs two passes) or ``noisy`` (diffusion forcing: the past is as noisy as it happens to be).
        context_noise: with a clean context, the largest share of noise in a past frame; sample videos use it too.
        action_dropout: share of the actions that are hidden, for guidance and for worlds that play without.
        outcomes: heads for reward and end; null learns none. They need data.fields to name rewards (and terminated).
        context_frames: whole frames that a sample video starts from.
        sampling_steps: of the sample videos.
        pretrained: a bundle, or any folder with a ``dynamics`` in it, whose weights the network begins with; all but
            agent tokens' must be there, and the settings the same. None begins with new ones.
    """

    def __init__(
        self,
        tokenizer: str | VideoTokenizer,
        dynamics: DiT,
        objective: DiffusionObjective,
        optimizer: OptimizerConfig,
        context: Literal["clean", "noisy"] = "clean",
        context_noise: float = 0.1,
        action_dropout: float = 0.0,
        outcomes: RewardTerminationHeads | None = None,
        context_frames: int = 4,
        sampling_steps: int = 4,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        objective.check(dynamics)
        if context == "clean" and not dynamics.transformer.causal:
            raise ValueError("context=clean trains frames that see only earlier ones: causal=False needs context=noisy")
        if context_frames < 1 or not 0 <= action_dropout <= 1:
            raise ValueError(
                f"context_frames={context_frames} must be at least 1, action_dropout={action_dropout} between 0 and 1"
            )
        if isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer, grid=dynamics.grid)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.dynamics, self.objective, self.optimizer, self.outcomes = dynamics, objective, optimizer, outcomes
        self.context, self.context_noise, self.action_dropout = context, context_noise, action_dropout
        self.context_frames = context_frames
        self.sampling = DiffusionSampling(sampling_steps, context_noise, shift=objective.shift)
        self.scales = nn.ModuleDict({name: LossNormalizer() for name in ("dynamics", "reward", "end")})
        check_tokenizer_matches_dit(self.tokenizer, dynamics)
        if outcomes is not None:
            check_reward_heads_match_dit(outcomes, dynamics)
        check_diffusion_sampling(dynamics, self.sampling)
        if pretrained is not None:
            load_pretrained_weights(
                dynamics, Path(pretrained) / "dynamics", new=("agents",), settings=("agent_tokens",)
            )

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log."""
        latents = self._latents(batch)
        action_embedding = self._action_embedding(batch, latents)
        loss, logs, features = self._denoise(latents, action_embedding, self._past(latents, action_embedding))
        if self.outcomes is None:
            return loss, logs
        losses = {"dynamics": loss} | self._outcome_losses(batch, features)
        return self._normalized_sum(losses), logs | {f"{name}_loss": loss.detach() for name, loss in losses.items()}

    def _denoise(
        self, latents: Tensor, action_embedding: Tensor, past: NoisyFrames | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The objective's loss over clips, what to log, and the features of frames: of the past, or of the noisy."""
        skip = 0 if past is None else 1  # nothing leads to a clip's first frame
        features: list[Tensor] = []

        def predict(x: Tensor, signal: Tensor, step_index: Tensor | None, clips: slice) -> Tensor:
            noisy = NoisyFrames(x, signal, step_index, action_embedding[clips, skip:])
            out = self.dynamics(noisy, None if past is None else select_clips(past, clips))
            features.append(out.features)
            return out.prediction

        loss, logs = self.objective.loss(predict, latents[:, skip:])
        return loss, {"dynamics_loss": loss.detach(), **logs}, features[-1]

    def _outcome_losses(self, batch: ClipBatch, features: Tensor) -> dict[str, Tensor]:
        """Of reward and end, from the features [b, t, d] of the frames where the actions were taken."""
        if batch.rewards is None or batch.actions is None:
            raise ValueError("outcomes need rewards and actions: name them in data.fields, or set outcomes to null")
        assert self.outcomes is not None
        known = None if batch.labeled is None else batch.labeled[:, None].expand(batch.actions.shape[:2])
        action_embedding = self.dynamics.embed_actions(batch.actions, known)
        reward, end = self.outcomes.losses(features, action_embedding, batch.rewards, batch.terminated)
        return {"reward": reward, "end": end}

    def _normalized_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of losses of different size, each divided by its running root mean square."""
        return sum(
            (self.scales[name](loss) for name, loss in losses.items()), start=torch.zeros((), device=self.device)
        )

    def _past(self, latents: Tensor, action_embedding: Tensor) -> NoisyFrames | None:
        """The frames that the noisy ones look back at, each with its own small share of noise."""
        if self.context == "noisy":
            return None
        # Outcomes are read from every frame, of which the last is nobody's past.
        frames = latents.shape[1] - (self.outcomes is None)
        latents, action_embedding = latents[:, :frames], action_embedding[:, :frames]
        signal = 1 - self.context_noise * torch.rand(latents.shape[:2], device=latents.device)
        x = add_noise(self.dynamics.prediction, latents, torch.randn_like(latents), signal)
        return NoisyFrames(x, signal, finest_step_index(self.dynamics, signal), action_embedding)

    def _action_embedding(self, batch: ClipBatch, latents: Tensor) -> Tensor:
        """Vectors of the actions that led to each frame; nothing where a clip is not labelled, or by dropout."""
        shape = latents.shape
        if self.dynamics.embed_action is None:
            return self.dynamics.embed_previous_actions(None, shape[0], shape[1])
        if batch.actions is None:
            raise ValueError(
                "these shards hold no actions, and dynamics wants them: set dynamics.num_actions and action_dims to 0"
            )
        if self.checks_values(latents):
            self.dynamics.embed_action.check(batch.actions)
        known = torch.ones(shape[0], shape[1] - 1, dtype=torch.bool, device=self.device)
        if batch.labeled is not None:
            known &= batch.labeled[:, None]
        known = self.drop_actions(known)
        return self.dynamics.embed_previous_actions(batch.actions[:, :-1], shape[0], shape[1], known)

    @torch.no_grad()
    def _latents(self, batch: ClipBatch) -> Tensor:
        """float [b, t, h, w, c]: read where the shards are encoded, else made here."""
        if batch.latents is not None:
            latents = batch.latents.float()
        else:
            latents = self.tokenizer.encode(frames_to_float(batch.frames)).float()
        if latents.shape[1] < 2:
            raise ValueError(f"clips of {latents.shape[1]} latent frames: dynamics need at least 2 (data.clip_length)")
        if self.checks_values(latents) and not torch.isfinite(latents).all():
            clips = (~torch.isfinite(latents)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"latents of clips {clips} of the batch are not finite: encode the shards again")
        return latents

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how much higher it is when clips swap their actions."""
        with self.fixed_randomness(index):  # equal noise for both
            loss, logs = self(batch)
            if self.dynamics.embed_action is not None and batch.actions is not None and len(batch.actions) > 1:
                torch.manual_seed(index)
                logs["shuffle_ratio"] = self(shuffle_actions(batch))[1]["dynamics_loss"] / logs["dynamics_loss"]
        return loss, logs

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """What to keep an average of, to compile and to export."""
        trained: dict[str, nn.Module] = {"dynamics": self.dynamics}
        return trained if self.outcomes is None else trained | {"outcomes": self.outcomes}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """The batch's first frames, continued under its own actions: uint8 [b, t, H, W, 3]."""
        latents = self._latents(batch)
        action_embedding = self._action_embedding(batch, latents)
        b, t = latents.shape[:2]
        start, seeds = min(self.context_frames, t - 1), world_seeds(0, b, latents.device)
        if not self.dynamics.transformer.causal:
            return video_to_uint8(
                self.tokenizer.decode(
                    sample_latent_clip(self.dynamics, latents[:, :start], action_embedding, seeds, self.sampling)
                )
            )
        # As DiTSimulator draws them.
        of_past, of_frames, noise = (
            fold_in(seeds, CONTEXT_SEED_STREAM),
            fold_in(seeds, FRAME_SEED_STREAM),
            self.sampling.context_noise,
        )
        state, frames = self.dynamics.init_state(b), [latents[:, :start]]
        state, _ = observe_latents(self.dynamics, state, frames[0], action_embedding[:, :start], of_past, noise)
        for i in range(start, t):
            here = action_embedding[:, i : i + 1]
            frames.append(sample_latent_frame(self.dynamics, state, here, fold_in(of_frames, i), self.sampling))
            state, _ = observe_latents(self.dynamics, state, frames[-1], here, of_past, noise)
        return video_to_uint8(self.tokenizer.decode(torch.cat(frames, dim=1)))


def check_reward_heads_match_dit(outcomes: RewardTerminationHeads, dynamics: DiT) -> None:
    """Raise ValueError where heads cannot read the network."""
    if outcomes.config.width != dynamics.config.width:
        raise ValueError(
            f"outcomes.width={outcomes.config.width} but dynamics.width={dynamics.config.width}: set them equal"
        )
    if dynamics.embed_action is None:
        raise ValueError("outcomes come of actions, and dynamics knows none: set outcomes to null")


def check_tokenizer_matches_dit(tokenizer: VideoTokenizer, dynamics: DiT) -> None:
    """Raise ValueError where tokenizer and network were not made for each other, naming both values."""
    if not tokenizer.channels:
        raise ValueError(
            f"a DiT needs continuous latents, and this tokenizer has a codebook of {tokenizer.codebook_size}: "
            "train one of configs/vae/..., or use the codebook with configs/genie/..."
        )
    if tokenizer.time_compression > 1 and dynamics.embed_action is not None:
        raise ValueError(
            f"the tokenizer makes a latent of {tokenizer.time_compression} frames, and actions lead from frame to "
            "frame: take one with time_compression=1, or set dynamics.num_actions and action_dims to 0"
        )
    for name, value, other in (
        ("grid", dynamics.grid, tuple(tokenizer.grid)),
        ("channels", dynamics.channels, tokenizer.channels),
    ):
        if value != other:
            raise ValueError(f"dynamics.{name}={value} but the tokenizer's: {other}. Set dynamics.{name} to {other}.")
