"""Features in which drift is measured: of single frames by the world's own tokenizer, or of short clips by a model.

Legend: n clips, t time, h w pixels, k frames of a short clip, f features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.capabilities import EncodesFrames
from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.simulator import Simulator

ClipFeatures = Callable[[Tensor], Tensor]
"""uint8 [n, t, h, w, 3] -> float64 [m, f], of each frame or of each short clip."""


def tokenizer_features(simulator: Simulator, batch_size: int) -> ClipFeatures | None:
    """Return the features of single frames by a world's own tokenizer; None where the world encodes no frames.

    Tokens become the values that the world's policies read (``Simulator.flatten_latents``).
    """
    if not isinstance(simulator, EncodesFrames):
        return None

    @torch.no_grad()
    def features(clips: Tensor) -> Tensor:
        parts = clips.flatten(0, 1).split(4 * batch_size)
        encoded = [simulator.flatten_latents(simulator.encode(part[:, None])[:, 0]) for part in parts]
        return torch.cat(encoded).double().cpu()

    return features


def model_features(extractor: FeatureExtractor, batch_size: int, device: torch.device) -> ClipFeatures:
    """Return the features of short clips by another model, such as V-JEPA: the mean of its tokens.

    Clips are cut into as many frames as suit the model, and shorter ones go on with their last frame. Frames are
    resized to the model's size.
    """
    extractor.to(device)

    def features(clips: Tensor) -> Tensor:
        k = extractor.frames
        if clips.shape[1] < k:
            clips = torch.cat((clips, clips[:, -1:].expand(-1, k - clips.shape[1], -1, -1, -1)), dim=1)
        short = clips[:, : clips.shape[1] // k * k].unflatten(1, (-1, k)).flatten(0, 1)
        resized = _resize(short, extractor.image_size)
        means = [extractor(part.to(device)).mean(dim=1).double().cpu() for part in resized.split(batch_size)]
        return torch.cat(means)

    return features


def _resize(clips: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize uint8 [n, t, h, w, 3] to ``size``."""
    if size is None or tuple(clips.shape[2:4]) == tuple(size):
        return clips
    images = clips.flatten(0, 1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(images, size=size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])
