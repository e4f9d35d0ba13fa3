"""Surprise of a V-JEPA model: the distance of its prediction of the next frames from the true frames.

Windows slide over a video. The encoder sees a window's first frames, the predictor predicts the features of the
following ones, and the surprise is their distance from the encoded true frames (Garrido et al., 2025, arXiv 2502.11831,
section 2).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vwm.core.components import ComponentError, load_component
from vwm.core.frames import frames_to_float
from vwm.models.vjepa.masked_prediction import encode_levels, feature_errors, gather_tokens, normalize_levels
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.video_encoder import VideoEncoder


class VJEPASurprise:
    """The surprise of a model at a video, window by window: see ``VideoSurprise``.

    Args:
        encoder: encodes the first frames of a window, and whole windows for the targets.
        predictor: the predictor trained with it.
        context: number of frames of a window that the encoder sees; a multiple of the tubelet, below the window.
        mask_token: index of the mask token of the predicted frames; None uses the default of the predictor.

    Raises:
        ValueError: ``context`` leaves nothing to predict, or is not a multiple of the tubelet.
    """

    def __init__(
        self, encoder: VideoEncoder, predictor: MaskedPredictor, context: int, mask_token: int | None = None
    ) -> None:
        if context % encoder.tubelet or not 0 < context < encoder.frames:
            raise ValueError(
                f"context={context} must be a multiple of tubelet={encoder.tubelet}, and less than the window of "
                f"{encoder.frames} frames"
            )
        self.image_size = encoder.image_size
        self.encoder = encoder
        self.predictor = predictor
        self.context = context
        self.mask_token = mask_token

    def frame_times(self, frames: int) -> list[int]:
        """Return the last frame of every window of a video. Raises ValueError where it is shorter than a window."""
        if frames < self.encoder.frames:
            raise ValueError(
                f"the model takes windows of {self.encoder.frames} frames, and these videos have {frames}: use longer "
                "videos, or train on shorter clips"
            )
        return list(range(self.encoder.frames - 1, frames, self.encoder.tubelet))

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Score videos, uint8 [b, t, h, w, 3] -> [b, windows]: the mean L1 distance of layer-normed features."""
        video = frames_to_float(frames.to(self.encoder.device))
        t, h, w = self.encoder.grid()
        levels = self.predictor.config.num_feature_layers
        tokens = torch.arange(t * h * w, device=video.device).expand(len(video), -1)
        visible, hidden = tokens.tensor_split([self.context // self.encoder.tubelet * h * w], dim=1)
        distances = []
        for end in self.frame_times(video.shape[1]):
            window = video[:, end + 1 - self.encoder.frames : end + 1]
            seen = encode_levels(self.encoder, window, levels, visible)
            predicted = self.predictor(seen, visible, hidden, self.mask_token)
            true = gather_tokens(normalize_levels(encode_levels(self.encoder, window, levels), levels), hidden)
            distances.append(feature_errors(predicted, true).mean(dim=1))
        return torch.stack(distances, dim=1)


def load_vjepa_surprise(folder: Path, context: int | None, mask_token: int | None, device: str) -> VJEPASurprise:
    """Load the scorer of an exported V-JEPA: see ``WorldFamily.load_surprise_scorer``.

    Raises:
        ComponentError: ``encoder`` or ``predictor`` is missing, broken, or another network.
        ValueError: see ``VJEPASurprise``.
    """
    encoder, predictor = (load_component(folder / name) for name in ("encoder", "predictor"))
    for name, network, kind in (("encoder", encoder, VideoEncoder), ("predictor", predictor, MaskedPredictor)):
        if not isinstance(network, kind):
            raise ComponentError(f"{folder / name} holds a {type(network).__name__}; surprise needs a {kind.__name__}")
        torch.nn.Module.to(network, device)
    half = encoder.frames // 2 // encoder.tubelet * encoder.tubelet
    return VJEPASurprise(encoder, predictor, context=half if context is None else context, mask_token=mask_token)
