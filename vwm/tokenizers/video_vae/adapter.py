"""What a tokenizer must know about a class of video autoencoders of diffusers.

Legend: b batch, c channels of the latents, t time, t' latents in time, h w grid of latents, H W pixels.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from vwm.core.network_base import find_diffusers_class
from vwm.tokenizers.video_vae.stream import Stream, StreamingLayer

VIDEO_VAES = {
    "AutoencoderKLWan": "wan.WanAdapter",
    "AutoencoderKLCogVideoX": "cogvideox.CogVideoXAdapter",
    "AutoencoderKLCosmos": "cosmos.CosmosAdapter",
    "AutoencoderKLHunyuanVideo": "hunyuan.HunyuanVideoAdapter",
    "AutoencoderKLHunyuanVideo15": "hunyuan15.HunyuanVideo15Adapter",
    "AutoencoderKLLTXVideo": "ltx.LTXVideoAdapter",
}
"""Module and adapter of each supported class, by its name in diffusers."""


class VideoVAEAdapter(ABC):
    """How a class of diffusers' video autoencoders encodes and decodes inside a ``Stream``.

    Attributes:
        layers: streaming layers by the classes that they replace.
    """

    layers: ClassVar[Mapping[type[nn.Module], type[StreamingLayer]]]

    def check(self, settings: Mapping[str, Any]) -> None:  # noqa: B027 (most adapters support all settings)
        """Raise ValueError for settings of the class that this adapter does not support."""

    def decoder_is_causal(self, settings: Mapping[str, Any]) -> bool:
        """Return whether frames depend on past latents only, so that they can be streamed."""
        return True

    def channels(self, settings: Mapping[str, Any]) -> int:
        """Return c."""
        return int(settings["latent_channels"])

    def compression(self, vae: Any) -> tuple[int, int]:
        """Return frames per latent and pixels per latent along each side."""
        return int(vae.config["temporal_compression_ratio"]), int(vae.config["spatial_compression_ratio"])

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor] | None:
        """Return mean and standard deviation, float [n, c] each, if they are among the weights, not in the config."""
        return None

    @abstractmethod
    def encode(self, vae: Any, video: Tensor, stream: Stream) -> Tensor:
        """Encode [b, 3, t, H, W] -> [b, c, t', h, w], the modes of the posteriors, not normalized."""

    @abstractmethod
    def decode(self, vae: Any, z: Tensor, stream: Stream) -> Tensor:
        """Decode [b, c, t', h, w] -> [b, 3, t, H, W]."""


def find_adapter(vae_class: str) -> VideoVAEAdapter:
    """Return the adapter of a class. Raises ValueError if there is none."""
    if vae_class not in VIDEO_VAES:
        raise ValueError(f"vae_class={vae_class!r} must be one of {', '.join(VIDEO_VAES)}")
    find_diffusers_class(vae_class)  # imports what the module below needs
    module, name = VIDEO_VAES[vae_class].split(".")
    adapter: VideoVAEAdapter = getattr(importlib.import_module(f"vwm.tokenizers.video_vae.{module}"), name)()
    return adapter
