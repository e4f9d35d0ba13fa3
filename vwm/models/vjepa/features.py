"""A V-JEPA encoder's features for probing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.models.vjepa.frame_encoder import FrameEncoder
from vwm.models.vjepa.video_encoder import VideoEncoder


class EncoderFeatureExtractor(FeatureExtractor):
    """A V-JEPA encoder's output; a layer's number takes that layer's instead."""

    def __init__(self, encoder: FrameEncoder, layer: int | None = None) -> None:
        super().__init__({"encoder": encoder}, len(encoder.blocks) if isinstance(encoder, VideoEncoder) else 0, layer)
        self.image_size = encoder.image_size
        if isinstance(encoder, VideoEncoder):
            self.frames = encoder.frames

    def tokens(self, video: Tensor) -> Tensor:
        encoder: Any = self.networks["encoder"]
        video = video.to(encoder.device)
        return encoder(video) if self.layer is None else encoder.layer_features(video, [self.layer])[0]
