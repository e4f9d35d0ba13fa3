"""Training a diffusion transformer over a frozen tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vwm.core.components import (
    COMPONENT_CONFIG_FILE,
    copy_weights,
    load_component,
    load_pretrained_weights,
    read_component_config,
)
from vwm.core.frames import frames_to_float, video_to_uint8
from vwm.core.network_base import ModelMixin
from vwm.core.seeds import world_seeds
from vwm.core.tokenizer import VideoTokenizer
from vwm.data.clips import ClipBatch
from vwm.hub.bundle_names import find_folder
from vwm.models.dit.network import DiT, NoisyFrames, select_clips
from vwm.models.dit.noise_schedule import add_noise
from vwm.models.dit.objectives import DiffusionObjective
from vwm.models.dit.own_rollouts import OwnRollouts, continue_latents
from vwm.models.dit.sampling import (
    DiffusionSampling,
    check_diffusion_sampling,
    finest_step_index,
    sample_latent_clip,
)
from vwm.nn.action_pooling import check_actions_after_latents, sum_outcomes
from vwm.nn.clip_draws import draw_normal_like, draw_uniform
from vwm.nn.context_parallel import ContextGroup
from vwm.nn.loss_normalizer import LossNormalizer
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.outcome_heads import RewardTerminationHeads
from vwm.nn.precision import at_least_float32
from vwm.nn.tensor_parallel import TensorGroup, divide_blocks
from vwm.nn.training_module import TrainingModule, known_actions
from vwm.tokenizers.loading import load_tokenizer

SETTINGS_THAT_MAY_DIFFER = ("agent_tokens", "num_tasks", "window", "sink_frames", "memory_frames", "memory_every")
"""Settings in which a network may differ from the pretrained one: agent tokens and tasks are new, the others have no
weights."""


class DiTModule(TrainingModule):
    """Learn to continue video under actions.

    Args:
        tokenizer: a trained tokenizer with continuous latents: a bundle, its ``tokenizer`` folder, or that of a
            diffusers VAE; or one that needs no training (``PixelTokenizer``).
        dynamics: the network.
        objective: the diffusion objective.
        optimizer: learning rate and schedule.
        context: the past frames that a noisy frame is conditioned on in training: ``clean`` (with a little noise, as in
            play; two passes) or ``noisy`` (diffusion forcing: each with its own noise level).
        context_noise: with a clean context, the largest share of noise in a past frame; also used for sample videos.
        rollouts: with a clean context, which past frames are the network's own instead of recorded ones; null uses
            recorded ones only.
        action_dropout: share of the actions that are hidden, for guidance and for play without actions.
        part_dropout: share of the parts of the other composite actions that are hidden, each by itself.
        outcomes: heads for reward and termination; null learns none. They require rewards (and terminated) in
            data.fields.
        context_frames: true frames at the start of a sample video; latents, where a latent holds several frames.
        sampling_steps: of the sample videos.
        pretrained: a bundle, or a folder with a ``dynamics``, whose weights initialize the network, and those of its
            heads ``outcomes`` where it has some (which read the same features only where both have as many agent
            tokens). Except for agent tokens and tasks, all weights must be there, and the settings equal but
            ``SETTINGS_THAT_MAY_DIFFER``; over latents of another number of frames, the layers that read and write
            latents are initialized randomly, and a network with ``action_pooling=concatenate`` may go on from one with
            another pooling of the actions of a latent, without a change at first. None initializes all of them
            randomly.
    """

    reads_frames = False

    def __init__(
        self,
        tokenizer: str | VideoTokenizer,
        dynamics: DiT,
        objective: DiffusionObjective,
        optimizer: OptimizerConfig,
        context: Literal["clean", "noisy"] = "clean",
        context_noise: float = 0.1,
        rollouts: OwnRollouts | None = None,
        action_dropout: float = 0.0,
        part_dropout: float = 0.0,
        outcomes: RewardTerminationHeads | None = None,
        context_frames: int = 4,
        sampling_steps: int = 4,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        objective.check(dynamics)
        if context == "clean" and not dynamics.transformer.causal:
            raise ValueError("context=clean requires causal attention: set context=noisy for causal=False")
        if context == "noisy" and rollouts is not None:
            raise ValueError("rollouts replace the past frames of a clean context: set context=clean, or rollouts=null")
        if context_frames < 1 or not 0 <= action_dropout <= 1 or not 0 <= part_dropout <= 1:
            raise ValueError(
                f"context_frames={context_frames} must be at least 1, action_dropout={action_dropout} and "
                f"part_dropout={part_dropout} between 0 and 1"
            )
        if isinstance(tokenizer, str):
            self.tokenizer_folder = tokenizer
            tokenizer = load_tokenizer(tokenizer, grid=dynamics.grid)
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.dynamics = dynamics
        self.objective = objective
        self.optimizer = optimizer
        self.outcomes = outcomes
        self.context = context
        self.context_noise = context_noise
        self.rollouts = rollouts
        self.action_dropout = action_dropout
        self.part_dropout = part_dropout
        self.context_frames = context_frames
        self.sampling = DiffusionSampling(sampling_steps, context_noise, shift=objective.shift)
        self.scales = nn.ModuleDict({name: LossNormalizer() for name in ("dynamics", "reward", "end")})
        check_tokenizer_matches_dit(self.tokenizer, dynamics)
        if outcomes is not None:
            check_reward_heads_match_dit(outcomes, dynamics)
        check_diffusion_sampling(dynamics, self.sampling)
        if pretrained is not None:
            folder = find_folder(pretrained)
            self._load_pretrained_dynamics(folder / "dynamics")
            if outcomes is not None:
                load_pretrained_heads(outcomes, dynamics, folder, "outcomes")

    def _load_pretrained_dynamics(self, folder: Path) -> None:
        """Initialize the dynamics; for another number of frames per latent, without input and output layers."""
        saved = load_component(folder, type(self.dynamics))
        new = [
            weight
            for weight, setting in (("agents", "agent_tokens"), ("tasks", "num_tasks"))
            if saved.config[setting] != self.dynamics.config[setting]
        ]
        settings = list(SETTINGS_THAT_MAY_DIFFER)
        if saved.frames_per_latent != self.dynamics.frames_per_latent:
            new += ["embed.", "head.", "pool_actions."]
            settings += ["frames_per_latent", "channels", "action_pooling"]
        elif self.dynamics.pool_actions is not None and self.dynamics.pool_actions.linear is not None:
            assert saved.pool_actions is not None  # of as many frames per latent
            saved.pool_actions = saved.pool_actions.as_concatenation()
            settings.append("action_pooling")
        copy_weights(self.dynamics, saved, str(folder), new, settings)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and what to log."""
        latents = self._latents(batch)
        action_embedding = self._action_embedding(batch, latents)
        past = latents
        if self.rollouts is not None and self.training:
            past = self.rollouts.replace_past(self.dynamics, latents, action_embedding, self.sampling)
        loss, logs, features = self._denoise(latents, action_embedding, self._clean_context(past, action_embedding))
        if self.outcomes is None:
            return loss, logs
        losses = {"dynamics": loss} | self._outcome_losses(batch, features)
        return self._normalized_sum(losses), logs | {f"{name}_loss": loss.detach() for name, loss in losses.items()}

    def _denoise(
        self, latents: Tensor, action_embedding: Tensor, past: NoisyFrames | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Compute the objective's loss, what to log, and the features of the past frames, or else of the noisy ones."""
        skip = 0 if past is None else 1  # no action leads to a clip's first frame
        features: list[Tensor] = []

        def predict(x: Tensor, signal: Tensor, step_index: Tensor | None, clips: slice | Tensor) -> Tensor:
            noisy = NoisyFrames(
                latents=x, signal=signal, step_index=step_index, action_embedding=action_embedding[clips, skip:]
            )
            out = self.dynamics(noisy, None if past is None else select_clips(past, clips))
            features.append(out.features)
            return out.prediction

        loss, logs = self.objective.loss(predict, latents[:, skip:])
        return loss, {"dynamics_loss": loss.detach(), **logs}, features[-1]

    def _outcome_losses(self, batch: ClipBatch, features: Tensor) -> dict[str, Tensor]:
        """Compute the losses of reward and termination from features [b, t, d] of the frames before the actions."""
        if batch.rewards is None or batch.actions is None:
            raise ValueError("outcomes need rewards and actions: name them in data.fields, or set outcomes to null")
        assert self.outcomes is not None
        per_latent = self.dynamics.frames_per_latent
        check_actions_after_latents(batch.actions, features.shape[1], per_latent)
        known = known_actions(batch, batch.actions.shape[1])
        action_embedding = self.dynamics.embed_actions(batch.actions, known)
        outcomes = sum_outcomes(batch.rewards, batch.terminated, per_latent)
        reward, end = self.outcomes.losses(features, action_embedding, *outcomes)
        return {"reward": reward, "end": end}

    def _normalized_sum(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum losses of different scale, each divided by its running root mean square."""
        return sum(
            (self.scales[name](loss) for name, loss in losses.items()), start=torch.zeros((), device=self.device)
        )

    def _clean_context(self, latents: Tensor, action_embedding: Tensor) -> NoisyFrames | None:
        """Return the past frames, each with its own small share of noise; None with a noisy context."""
        if self.context == "noisy":
            return None
        # Reward and termination are read from every frame; otherwise the last one is not needed.
        frames = latents.shape[1] - (self.outcomes is None)
        latents, action_embedding = latents[:, :frames], action_embedding[:, :frames]
        signal = 1 - self.context_noise * draw_uniform(latents.shape[:2], latents.device)
        x = add_noise(self.dynamics.prediction, latents, draw_normal_like(latents), signal)
        return NoisyFrames(
            latents=x,
            signal=signal,
            step_index=finest_step_index(self.dynamics, signal),
            action_embedding=action_embedding,
        )

    def _action_embedding(self, batch: ClipBatch, latents: Tensor) -> Tensor:
        """Embed the actions that led to each frame; as unknown where a clip is not labeled, or by dropout."""
        shape = latents.shape
        if self.dynamics.embed_action is None:
            return self.dynamics.embed_previous_actions(None, shape[0], shape[1])
        if batch.actions is None:
            raise ValueError(
                "these shards hold no actions, which dynamics requires: remove dynamics.num_actions, "
                "action_dims and action_parts"
            )
        if self.checks_values(latents):
            self.dynamics.embed_action.check(batch.actions)
        known = known_actions(batch, shape[1] - 1)
        if known is None:
            known = torch.ones(shape[0], shape[1] - 1, dtype=torch.bool, device=self.device)
        known = self.drop_actions(known, len(self.dynamics.embed_action.space.parts))
        per_latent = self.dynamics.frames_per_latent
        known = known.repeat_interleave(per_latent, dim=1)  # all actions of a latent or none
        actions = batch.actions[:, : known.shape[1]]
        if actions.shape[1] < known.shape[1]:
            raise ValueError(
                f"clips of {shape[1]} latents of {per_latent} frames need {known.shape[1]} actions, got "
                f"{actions.shape[1]}: encode the shards again with this tokenizer"
            )
        return self.dynamics.embed_previous_actions(actions, shape[0], shape[1], known)

    @torch.no_grad()
    def _latents(self, batch: ClipBatch) -> Tensor:
        """Return the latents, float [b, t, h, w, c], as encoded shards hold them, or encode the frames."""
        if batch.latents is not None:
            latents = at_least_float32(batch.latents)
        else:
            latents = at_least_float32(self.tokenizer.encode(frames_to_float(batch.frames)))
        if latents.shape[1] < 2:
            raise ValueError(f"clips of {latents.shape[1]} latent frames: dynamics need at least 2 (data.clip_length)")
        span = self.dynamics.transformer.span
        if latents.shape[1] <= span.window and span.exceeds_window:
            raise ValueError(
                f"clips of {latents.shape[1]} latent frames never show what dynamics.window={span.window} has lost, so "
                "that sink_frames and memory_frames are not learned: raise data.clip_length, or set them to 0"
            )
        if self.checks_values(latents) and not torch.isfinite(latents).all():
            clips = (~torch.isfinite(latents)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"latents of clips {clips} of the batch are not finite: encode the shards again")
        return latents

    def share_clips(self, group: ContextGroup) -> None:
        """See ``TrainingModule``. Raises ValueError for full attention."""
        if "full" in self.dynamics.transformer.attention_kinds:
            raise ValueError(
                f"context_parallel={group.size} requires dynamics.attention=factored, and it is full: set one of them"
            )
        self.context_group = self.dynamics.context_group = group

    def divide_weights(self, group: TensorGroup) -> None:
        """See ``TrainingModule``."""
        divide_blocks(self.networks().values(), group)
        self.tensor_group = group

    @property
    def tokens_per_latent(self) -> int:
        """See ``TrainingModule``: patches and registers of the network."""
        return len(self.dynamics.places)

    def validation_losses(self, batch: ClipBatch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``TrainingModule``: the loss, and how much higher it is with shuffled actions."""
        return self.losses_and_shuffle_ratio(batch, index, "dynamics_loss", self.dynamics.embed_action is not None)

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``: the tokenizer."""
        return (self.tokenizer,)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule``."""
        trained: dict[str, nn.Module] = {"dynamics": self.dynamics}
        return trained if self.outcomes is None else trained | {"outcomes": self.outcomes}

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """See ``TrainingModule``: the batch's first frames, continued under its own actions, as in ``DiTSimulator``."""
        latents = self._latents(batch)
        action_embedding = self._action_embedding(batch, latents)
        b, t = latents.shape[:2]
        start, seeds = min(self.context_frames, t - 1), world_seeds(0, b, latents.device)
        if not self.dynamics.transformer.causal:
            clip = sample_latent_clip(self.dynamics, latents[:, :start], action_embedding, seeds, self.sampling)
            return video_to_uint8(self.tokenizer.decode(clip))
        clip = continue_latents(self.dynamics, latents[:, :start], action_embedding, seeds, self.sampling)
        return video_to_uint8(self.tokenizer.decode(clip))


def load_pretrained_heads(heads: ModelMixin, dynamics: DiT, folder: Path, name: str) -> None:
    """Initialize heads with those of a bundle, where it has some that read what these read.

    Args:
        heads: receive the weights, in place.
        dynamics: the network whose features they read: the mean of its agent tokens, or of all tokens without any.
        folder: of the bundle.
        name: of the heads in the bundle.

    Raises:
        ComponentError: the bundle's heads have other settings, or are damaged.
    """
    saved = folder / "dynamics" / COMPONENT_CONFIG_FILE
    if (folder / name).is_dir() and read_component_config(saved).get("agent_tokens", 0) == dynamics.config.agent_tokens:
        load_pretrained_weights(heads, folder / name)


def check_reward_heads_match_dit(outcomes: RewardTerminationHeads, dynamics: DiT) -> None:
    """Raise ValueError where the heads do not fit the network."""
    if outcomes.config.width != dynamics.config.width:
        raise ValueError(
            f"outcomes.width={outcomes.config.width} but dynamics.width={dynamics.config.width}: set them equal"
        )
    if dynamics.embed_action is None:
        raise ValueError("outcomes require actions, and dynamics has none: set outcomes to null")


def check_tokenizer_matches_dit(tokenizer: VideoTokenizer, dynamics: DiT) -> None:
    """Raise ValueError where tokenizer and network do not fit each other, naming both values."""
    if not tokenizer.channels:
        raise ValueError(
            f"a DiT needs continuous latents, and this tokenizer has a codebook of {tokenizer.codebook_size}: "
            "train one of configs/vae/..., or use the codebook with configs/genie/..."
        )
    for name, value, other in (
        ("frames_per_latent", dynamics.frames_per_latent, tokenizer.time_compression),
        ("grid", dynamics.grid, tuple(tokenizer.grid)),
        ("channels", dynamics.channels, tokenizer.channels),
    ):
        if value != other:
            raise ValueError(f"dynamics.{name}={value} but the tokenizer's: {other}. Set dynamics.{name} to {other}.")
