"""The objective of masked pretraining: the distance of predicted features to those of the target encoder.

V-JEPA and V-JEPA 2 predict the features of hidden tokens, after the last layer. V-JEPA 2.1 (arXiv 2603.14482) predicts
those of several layers ("deep self-supervision") and also those of the visible tokens ("dense loss"), which count less
the farther they are from the hidden ones.

Legend: b batch, n tokens of a clip, k visible and m hidden ones, l layers, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import TokenMask
from vwm.models.vjepa.position_encoding import TokenGrid
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.nn.precision import at_least_float32


@dataclass
class ContextLossConfig:
    """The loss of the visible tokens, which V-JEPA 2.1 adds to that of the hidden ones.

    Attributes:
        weight: of the loss of the visible tokens; that of the hidden tokens has weight 1.
        image_weight: the same for images, clips of one frame; null takes ``weight``.
        warmup_start: training step until which the weights are 0.
        warmup_end: training step from which they have their values; they rise linearly in between.
        distance_weighting: divide the error of a visible token by the square root of its distance to the nearest hidden
            one, measured in tokens.

    Raises:
        ValueError: a weight is negative, or the warm-up ends before it starts.
    """

    weight: float = 0.5
    image_weight: float | None = None
    warmup_start: int = 15000
    warmup_end: int = 30000
    distance_weighting: bool = True

    def __post_init__(self) -> None:
        if self.weight < 0 or (self.image_weight or 0) < 0:
            raise ValueError(f"context_loss: weights must be 0 or more, got {self.weight} and {self.image_weight}")
        if not 0 <= self.warmup_start <= self.warmup_end:
            raise ValueError(
                f"context_loss: warmup_start={self.warmup_start} must be 0 or more, and at most "
                f"warmup_end={self.warmup_end}"
            )

    def weight_at(self, step: int, frames: int) -> float:
        """Return the weight at a training step for clips of a number of frames."""
        weight = self.weight if frames > 1 or self.image_weight is None else self.image_weight
        if step >= self.warmup_end:
            return weight
        return weight * max(0, step - self.warmup_start) / (self.warmup_end - self.warmup_start)


class PredictionLosses(NamedTuple):
    """Losses of a batch, before they are weighted.

    Attributes:
        hidden: of the hidden tokens.
        context: of the visible tokens; None where they are not predicted.
        visible: the encoder's features of the visible tokens after its last layer, [b, k, d], and their indices, of
            every mask.
    """

    hidden: Tensor
    context: Tensor | None
    visible: list[tuple[Tensor, Tensor]]


def masked_prediction_losses(
    encoder: VideoEncoder,
    predictor: MaskedPredictor,
    video: Tensor,
    targets: Tensor,
    masks: Sequence[TokenMask],
    context_loss: ContextLossConfig | None,
    mask_token: int | None = None,
) -> PredictionLosses:
    """Predict the target features of clips by their masks; each mask costs a pass of the encoder.

    Args:
        encoder: sees the visible tokens.
        predictor: predicts the features.
        video: float [b, t, 3, height, width].
        targets: ``encode_levels`` of the target encoder, normalized by ``normalize_levels``: [b, n, l d].
        masks: the masks.
        context_loss: of the visible tokens; None for none.
        mask_token: index of the mask token of all masks; None: mask i has token i, modulo their number.
    """
    frames, levels = video.shape[1], predictor.config.num_feature_layers
    hidden, context, visible = [], [], []
    for number, (context_indices, all_target_indices) in enumerate(masks):
        features = encode_levels(encoder, video, levels, context_indices)
        visible.append((features[..., -encoder.width :], context_indices))
        token = number % predictor.config.num_mask_tokens if mask_token is None else mask_token
        for target_indices in all_target_indices:
            if context_loss is None:
                predicted = predictor(features, context_indices, target_indices, token, frames)
            else:
                predicted, of_context = predictor.predict_all(features, context_indices, target_indices, token, frames)
                error = feature_errors(of_context, gather_tokens(targets, context_indices))
                if context_loss.distance_weighting:
                    distance = token_distances(context_indices, target_indices, encoder.grid(frames))
                    error = error * (1 / distance.sqrt())
                context.append(error.mean())
            hidden.append(feature_errors(predicted, gather_tokens(targets, target_indices)).mean())
    return PredictionLosses(
        hidden=torch.stack(hidden).mean(), context=torch.stack(context).mean() if context else None, visible=visible
    )


def encode_levels(encoder: VideoEncoder, video: Tensor, levels: int, token_indices: Tensor | None = None) -> Tensor:
    """Encode clips to the features of the last layer or, with ``levels`` above 1, of all ``feature_layers`` and it.

    Args:
        encoder: the encoder; ``levels`` must be 1, or one more than its ``feature_layers``.
        video: float [b, t, 3, height, width].
        levels: l.
        token_indices: see ``VideoEncoder.forward``.

    Returns:
        [b, n or k, l d], each layer after its own norm, the last layer last.
    """
    if levels == 1:
        return encoder(video, token_indices)
    return torch.cat(encoder.layer_features(video, (*encoder.config.feature_layers, -1), token_indices), dim=-1)


def normalize_features(features: Tensor) -> Tensor:
    """Apply layer norm without learned weights to features [..., d]."""
    return F.layer_norm(at_least_float32(features), features.shape[-1:])


def normalize_levels(features: Tensor, levels: int) -> Tensor:
    """Apply layer norm without learned weights to the features of each layer: [..., l d] -> [..., l d]."""
    return normalize_features(features.unflatten(-1, (levels, -1))).flatten(-2)


def gather_tokens(tokens: Tensor, token_indices: Tensor) -> Tensor:
    """Select tokens [b, n, d] by their indices, int64 [b, m]: [b, m, d]."""
    return tokens.gather(1, token_indices[..., None].expand(-1, -1, tokens.shape[-1]))


def feature_errors(predicted: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of each token's features: [b, m, d] twice -> [b, m]."""
    return (at_least_float32(predicted) - targets).abs().mean(dim=-1)


def token_distances(context_indices: Tensor, target_indices: Tensor, grid: TokenGrid) -> Tensor:
    """Distance of each visible token to the nearest hidden one, along time, height and width together.

    Args:
        context_indices, target_indices: int64 [b, k] and [b, m], disjoint.
        grid: number of tokens in time, height and width.

    Returns:
        float32 [b, k], in tokens; 1 or more.
    """
    _, height, width = grid

    def cells(indices: Tensor) -> Tensor:
        parts = (indices // (height * width), indices // width % height, indices % width)
        return torch.stack(parts, dim=-1).float()

    # Not by a matrix product, which rounds on accelerators with TF32.
    distances = torch.cdist(cells(context_indices), cells(target_indices), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(dim=-1)
