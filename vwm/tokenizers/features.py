"""A tokenizer's features for probing."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.core.tokenizer import VideoTokenizer


class TokenizerFeatureExtractor(FeatureExtractor):
    """A tokenizer's latents; for a discrete one, the code vectors of its tokens."""

    def __init__(self, tokenizer: VideoTokenizer, layer: int | None = None) -> None:
        super().__init__({"tokenizer": tokenizer}, 0, layer)
        self.image_size = tokenizer.image_size
        if tokenizer.time_compression > 1:
            self.frames = 1 + tokenizer.time_compression  # the first latent holds the first frame only

    def tokens(self, video: Tensor) -> Tensor:
        tokenizer: Any = self.networks["tokenizer"]
        latents = tokenizer.encode(video.to(tokenizer.device))
        if tokenizer.codebook_size:
            latents = tokenizer.quantizer.lookup(latents)
        return rearrange(latents, "b t h w d -> b (t h w) d")
