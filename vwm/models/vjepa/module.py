"""Masked pretraining: predict the representations of masked tokens from those of visible tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.blocks import uncompiled_blocks
from vwm.core.frames import frames_to_float
from vwm.data.clips import ClipBatch
from vwm.models.vjepa.augmentation import RandomResizedCrop
from vwm.models.vjepa.collapse_monitor import (
    DRIFT_CLIPS,
    CollapseBaseline,
    CollapseMonitor,
    measure_representations,
)
from vwm.models.vjepa.collapse_regularizers import CollapseRegularizer
from vwm.models.vjepa.masked_clips import MaskedClips, MaskedPart, split_stills
from vwm.models.vjepa.masked_prediction import (
    ContextLossConfig,
    encode_levels,
    masked_prediction_losses,
    normalize_features,
    normalize_levels,
)
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MaskSampler, TokenMask
from vwm.models.vjepa.motion_branch import MotionBranch
from vwm.models.vjepa.network_checks import check_vjepa_networks, load_pretrained_networks, load_teacher
from vwm.models.vjepa.position_encoding import TokenGrid
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.models.vjepa.visualization import pca_rgb_video
from vwm.nn.optimizer import OptimizerConfig
from vwm.nn.precision import at_least_float32
from vwm.nn.ranks import mean_over_ranks, mean_over_ranks_with_gradient
from vwm.nn.sharding import local_part
from vwm.nn.training_module import TrainingModule


@dataclass
class EMAMomentumSchedule:
    """Linear schedule of the momentum m of the target encoder: target = m target + (1 - m) encoder after each step.

    With 0 for both values, the target is the current encoder without gradients.

    Attributes:
        start: m at the first step.
        end: m at the trainer's ``max_steps``.

    Raises:
        ValueError: a value is not between 0 and 1.
    """

    start: float = 0.998
    end: float = 0.9996

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 <= self.end <= 1:
            raise ValueError(f"momentum must be between 0 and 1, got start={self.start}, end={self.end}")


class VJEPAModule(TrainingModule):
    """V-JEPA (arXiv 2404.08471), 2 (arXiv 2506.09985) and 2.1 (arXiv 2603.14482); I-JEPA (arXiv 2301.08243) of images.

    A predictor with as many ``num_feature_layers`` as the encoder has ``feature_layers`` and its last one predicts the
    features of all of them (V-JEPA 2.1), otherwise those of the last layer.

    Args:
        encoder: the network to train.
        predictor: the predictor of masked tokens.
        mask_samplers: samplers of masks. Each mask costs a pass of the encoder.
        optimizer: learning rate and schedule.
        momentum: momentum schedule of the target encoder; null for no target encoder, with gradients through the
            targets, which requires another protection against collapse.
        regularizer: regularizer of the encoder's tokens against collapse; null for none.
        motion: branch that learns optical flow jointly; it costs an additional pass of the encoder over whole clips.
        augmentation: random crops and flips; null for none.
        monitor: collapse monitor; null for none.
        pretrained: a folder with ``encoder`` and ``predictor`` (an export, or imported weights) to start from, for a
            cool-down or for other data; their sizes must be those of the config.
        context_loss: loss of the visible tokens (V-JEPA 2.1), of a predictor with ``predict_context``; null for none.
        image_mask_samplers: samplers for images among videos (``data.stills``), where the encoder has
            ``modality_embeddings`` and embeds them as clips of one frame (V-JEPA 2.1); null takes ``mask_samplers``.
            Without ``modality_embeddings``, images are clips of equal frames (V-JEPA 2).
        mask_token: index of the mask token of all masks (V-JEPA 2 and 2.1: 0); null: each mask has its own, if the
            predictor has enough (V-JEPA).
        teacher: a folder with an ``encoder`` (an export, or imported weights) whose features are the targets, frozen:
            distillation, as in the published ViT-B and ViT-L of V-JEPA 2.1. The predictor's ``output_width`` is its
            width, and the target encoder is only what is exported. null: the target encoder's features are.

    Raises:
        ValueError: the networks do not fit each other, or the pretrained weights do not fit them.
    """

    whole_clips = "its encoders attend to all tokens of a clip"

    def __init__(
        self,
        encoder: VideoEncoder,
        predictor: MaskedPredictor,
        mask_samplers: list[MaskSampler],
        optimizer: OptimizerConfig,
        momentum: EMAMomentumSchedule | None = EMAMomentumSchedule(),  # noqa: B008 (never modified)
        regularizer: CollapseRegularizer | None = None,
        motion: MotionBranch | None = None,
        augmentation: RandomResizedCrop | None = None,
        monitor: CollapseMonitor | None = CollapseMonitor(),  # noqa: B008 (never modified)
        pretrained: str | None = None,
        context_loss: ContextLossConfig | None = None,
        image_mask_samplers: list[MaskSampler] | None = None,
        mask_token: int | None = None,
        teacher: str | None = None,
    ) -> None:
        super().__init__()
        self.teacher = None if teacher is None else load_teacher(teacher)
        check_vjepa_networks(encoder, predictor, mask_samplers, context_loss, mask_token, self.teacher)
        if pretrained is not None:
            load_pretrained_networks(pretrained, {"encoder": encoder, "predictor": predictor})
        if predictor.config.num_feature_layers == 1:  # they would never get a gradient, which DDP refuses
            encoder.feature_norms.requires_grad_(False)
        self.encoder = encoder
        self.predictor = predictor
        self.mask_samplers = mask_samplers
        self.optimizer = optimizer
        self.momentum = momentum
        self.regularizer = regularizer
        self.motion = motion
        self.augmentation = augmentation
        self.target_encoder = None if momentum is None else copy.deepcopy(encoder).requires_grad_(False)
        self.monitor = monitor
        self.context_loss = context_loss
        self.image_mask_samplers = image_mask_samplers
        self.mask_token = mask_token
        self.baseline = CollapseBaseline()
        self._monitored_frames: Tensor | None = None
        self._previous_features: Tensor | None = None
        self._last_monitored_step = -1

    def forward(self, batch: MaskedClips) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and values to log."""
        video = self._augmented_video(batch)
        if batch.videos is None or batch.images is None:
            assert batch.masks is not None
            return self._clip_losses(video, batch.masks)
        videos, logs = self._clip_losses(video[batch.videos.rows], batch.videos.masks)
        images, image_logs = self._clip_losses(video[batch.images.rows, :1], batch.images.masks)
        shares = batch.videos.share, batch.images.share
        return shares[0] * videos + shares[1] * images, {
            name: shares[0] * value + shares[1] * image_logs[name] for name, value in logs.items()
        }

    def _clip_losses(self, video: Tensor, masks: list[TokenMask]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of clips of one length, float [b, t, 3, h, w], and values to log."""
        targets, clip_tokens = self._targets(video)
        losses = masked_prediction_losses(
            self.encoder, self.predictor, video, targets, masks, self.context_loss, self.mask_token
        )
        loss = losses.hidden
        logs = {"prediction_loss": loss.detach()}
        if losses.context is not None and self.context_loss is not None:
            loss = loss + self.context_loss.weight_at(self.global_step, video.shape[1]) * losses.context
            logs["context_loss"] = losses.context.detach()
        if self.regularizer is not None:
            tokens = losses.visible if clip_tokens is None else [(clip_tokens, self._all_token_indices(clip_tokens))]
            samples = [subtract_position_mean(x, indices, targets.shape[1]) for x, indices in tokens]
            regularization_loss, regularization_logs = self.regularizer(torch.cat(samples))
            loss = loss + regularization_loss
            logs |= regularization_logs
        if self.motion is not None:
            clip_tokens = self.encoder(video) if clip_tokens is None else clip_tokens
            motion_loss, motion_logs = self.motion(clip_tokens, video, self.encoder.grid(video.shape[1]))
            loss = loss + motion_loss
            logs |= motion_logs
        return loss, logs

    def _targets(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalized features of whole clips [b, n, l d], and the encoder's tokens if the targets are its own."""
        levels = self.predictor.config.num_feature_layers
        network = self.target_encoder if self.teacher is None else self.teacher
        if network is None:
            features = encode_levels(self.encoder, video, levels)
            return normalize_levels(features, levels), features[..., -self.encoder.width :]
        with torch.no_grad():
            return normalize_levels(encode_levels(network, video, levels), levels), None

    def _all_token_indices(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)

    def _augmented_video(self, batch: ClipBatch) -> Tensor:
        video = frames_to_float(batch.frames)
        if self.augmentation is None or not self.training:
            return video
        assert batch.seed is not None
        return self.augmentation(video, batch.seed)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: sample the masks while the seeds of the clips are on the CPU, without synchronization."""
        if not isinstance(batch, ClipBatch) or isinstance(batch, MaskedClips):
            return batch
        return self.sample_masks(batch)

    def sample_masks(self, batch: ClipBatch) -> MaskedClips:
        """Add masks, a function of the seeds of the clips, to a batch."""
        assert batch.seed is not None
        grid, seeds = self.encoder.grid(batch.frames.shape[1]), batch.seed
        if batch.still is None or not self.encoder.config.modality_embeddings:
            return MaskedClips(**vars(batch), masks=self._sample(self.mask_samplers, seeds, grid))
        if self.regularizer is not None or self.motion is not None:
            raise ValueError(
                "images that the encoder embeds apart from videos (encoder.modality_embeddings) cannot be mixed with "
                "model.regularizer or model.motion: set both to null, or modality_embeddings to false"
            )
        videos, images, share = split_stills(batch.still)
        image_samplers = self.mask_samplers if self.image_mask_samplers is None else self.image_mask_samplers
        image_masks = self._sample(image_samplers, seeds[images], self.encoder.grid(1))
        return MaskedClips(
            **vars(batch),
            videos=MaskedPart(videos, self._sample(self.mask_samplers, seeds[videos], grid), 1 - share),
            images=MaskedPart(images, image_masks, share),
        )

    def _sample(self, samplers: list[MaskSampler], seed: Tensor, grid: TokenGrid) -> list[TokenMask]:
        # In training, one of the step: every process has blocks of the same size, whichever clips are its own.
        step = torch.tensor([(self._draw_seed << 32) + self.global_step]) if self.training else seed[:1]
        return [sampler.sample(seed + number, grid, step + number) for number, sampler in enumerate(samplers)]

    def training_step(self, batch: MaskedClips, index: int) -> Tensor:
        """Lightning's hook; also monitor the representations at intervals."""
        self._monitor_representations(batch)
        return super().training_step(batch, index)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook: update the target encoder after the optimizer step, before a checkpoint is saved."""
        super().optimizer_step(*args, **kwargs)
        if self.target_encoder is not None:
            assert self.momentum is not None
            progress = min(1.0, self.global_step / max(1, self.trainer.max_steps))
            momentum = self.momentum.start + (self.momentum.end - self.momentum.start) * progress
            update_target_encoder(self.target_encoder, self.encoder, momentum)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: a resumed run monitors the same clips."""
        super().on_save_checkpoint(checkpoint)
        if self._monitored_frames is not None:
            checkpoint["monitored_frames"] = self._monitored_frames.cpu()
            checkpoint["monitored_features"] = self._previous_features
            checkpoint["last_monitored_step"] = self._last_monitored_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._monitored_frames = checkpoint.get("monitored_frames")
        self._previous_features = checkpoint.get("monitored_features")
        self._last_monitored_step = checkpoint.get("last_monitored_step", -1)

    @torch.no_grad()
    def _monitor_representations(self, batch: ClipBatch) -> None:
        monitor, step = self.monitor, self.global_step
        if monitor is None or step == self._last_monitored_step or step % monitor.every_n_steps:
            return
        self._last_monitored_step = step
        if self._monitored_frames is None:
            self._monitored_frames = batch.frames[: monitor.num_clips].clone()
        video = frames_to_float(self._monitored_frames.to(batch.frames.device))
        with uncompiled_blocks(self):
            features = normalize_features((self.target_encoder or self.encoder)(video))
        metrics = measure_representations(features, self._previous_features)
        self._previous_features = features[:DRIFT_CLIPS].float().cpu()
        collapse = monitor.check(metrics, self.baseline.get_or_set(metrics))
        # Not by `log`, which would repeat the values in the rows of the steps between two measurements.
        row = {**metrics._asdict(), "alarm": float(collapse is not None)}
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **{f"collapse/{k}": v for k, v in row.items()}}, step)
        if collapse is not None:
            self._report_collapse(monitor, collapse)

    def _report_collapse(self, monitor: CollapseMonitor, collapse: str) -> None:
        message = f"step {self.global_step}: {collapse}. {self.collapse_advice()}"
        if monitor.stop_on_collapse:
            raise ValueError(message)
        rank_zero_warn(message, category=CollapseWarning)

    def collapse_advice(self) -> str:
        """Return the changes of this run's config that most likely prevent a collapse."""
        if self.teacher is not None:
            return f"The targets stay a teacher's: lower the learning rate (model.optimizer.lr={self.optimizer.lr})."
        if self.regularizer is None and self.momentum is None:
            return (
                "Nothing prevents a collapse in this run: set model.momentum, or model.regularizer (SIGReg needs no "
                "momentum)."
            )
        if self.regularizer is None and self.momentum is not None and self.momentum.start < 0.99:
            return (
                f"The target encoder changes too fast (model.momentum.start={self.momentum.start}): raise it to 0.99 "
                "or more, or add model.regularizer."
            )
        if self.regularizer is not None and self.momentum is None:
            return "Raise the weights of model.regularizer, or add a target encoder (model.momentum)."
        return (
            f"Lower the learning rate (model.optimizer.lr={self.optimizer.lr}), raise model.momentum, mask more "
            "(model.mask_samplers), or add model.regularizer (VarianceCovarianceRegularizer, SIGReg)."
        )

    def count_tokens(self, batch: ClipBatch) -> int:
        """See ``TrainingModule``: tokens of whole clips, of which the encoder reads a part."""
        tokens = self.encoder.num_tokens(batch.frames.shape[1])
        if isinstance(batch, MaskedClips) and batch.videos is not None and batch.images is not None:
            return len(batch.videos.rows) * tokens + len(batch.images.rows) * self.encoder.num_tokens(1)
        return len(batch.frames) * tokens

    def frozen_networks(self) -> tuple[nn.Module, ...]:
        """See ``TrainingModule``."""
        return () if self.teacher is None else (self.teacher,)

    def networks(self) -> dict[str, nn.Module]:
        """See ``TrainingModule.networks``."""
        networks: dict[str, nn.Module] = {"encoder": self.encoder, "predictor": self.predictor}
        return networks if self.target_encoder is None else networks | {"target_encoder": self.target_encoder}

    @torch.no_grad()
    def probe_features(self, batch: ClipBatch) -> Tensor:
        """See ``OnlineProbe``: the target's last layer, averaged over time and each quarter of the frame, [b, 4 d]."""
        video = frames_to_float(batch.frames)
        features = (self.target_encoder or self.encoder)(video).unflatten(1, self.encoder.grid(video.shape[1]))
        return F.adaptive_avg_pool2d(features.mean(dim=1).permute(0, 3, 1, 2), 2).flatten(1)

    @torch.no_grad()
    def sample(self, batch: ClipBatch) -> Tensor:
        """Show the first three principal components of the features as colors, uint8 [b, t, H, W, 3]."""
        video = frames_to_float(batch.frames)
        features = normalize_features((self.target_encoder or self.encoder)(video))
        return pca_rgb_video(features, self.encoder.grid(video.shape[1]), tuple(batch.frames.shape[1:4]))


class CollapseWarning(UserWarning):
    """Warning that the representations are collapsing."""


def subtract_position_mean(tokens: Tensor, token_indices: Tensor, num_positions: int) -> Tensor:
    """Subtract from tokens [b, k, d] the mean of the global batch at the same of ``num_positions`` places: [b*k, d].

    The result contains differences between clips. Otherwise a regularizer is satisfied by an encoder whose features
    depend on the position only.
    """
    x, indices = at_least_float32(tokens).flatten(0, 1), token_indices.flatten()
    sums = x.new_zeros(num_positions, x.shape[1]).index_add(0, indices, x)
    counts = x.new_zeros(num_positions).index_add(0, indices, torch.ones_like(indices, dtype=x.dtype))
    sums, counts = mean_over_ranks_with_gradient(sums), mean_over_ranks(counts)
    return x - (sums / torch.where(counts > 0, counts, 1)[:, None])[indices]


@torch.no_grad()
def update_target_encoder(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Update all weights in place: target = momentum target + (1 - momentum) source."""
    averages = [local_part(average) for average in target.parameters()]
    torch._foreach_lerp_(averages, [local_part(weight) for weight in source.parameters()], 1 - momentum)
