"""What every tokenizer does: video to latents and back, a whole clip at once or frame by frame.

Legend: b batch, t time, t' latents in time, h w the grid of latents, H W pixels, c channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

TokenizerState = Any
"""A nested tuple of tensors, each with the batch first (see ``vwm.core.states``)."""


class TokenizerOutput(NamedTuple):
    """What training looks at.

    Attributes:
        video: float [b, t, 3, H, W].
        latents: tokens int64 [b, t', h, w], or float [b, t', h, w, c].
        penalty: scalar to add to the loss: a codebook's commitment, or a weighted KL; 0 where there is none.
    """

    video: Tensor
    latents: Tensor
    penalty: Tensor


class VideoTokenizer(ModelMixin, ConfigMixin):
    """Video float [b, t, 3, H, W] in [-1, 1] to latents and back.

    Latents are tokens (int64 [b, t', h, w]) or continuous (float [b, t', h, w, c], about zero mean and unit
    deviation a channel). The streaming calls give what the parallel ones give, for every way to cut a video in pieces.

    Attributes:
        image_size: (H, W) in pixels.
        grid: (h, w) of the latents.
        time_compression: frames a latent; the first latent is always the first frame alone.
        codebook_size: number of codes; 0 where the latents are continuous.
        channels: c of continuous latents; 0 where there are tokens.
    """

    image_size: tuple[int, int]
    grid: tuple[int, int]
    time_compression: int = 1
    codebook_size: int = 0
    channels: int = 0

    @property
    def tokens_per_frame(self) -> int:
        """n = h * w."""
        return self.grid[0] * self.grid[1]

    def begin(self, video: Tensor) -> None:
        """Look at a training's first batch, float [b, t, 3, H, W], before anything is learned."""

    @abstractmethod
    def forward(self, video: Tensor) -> TokenizerOutput:
        """Through the bottleneck and back, with gradients."""

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] -> latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> float [b, t, 3, H, W]."""

    @abstractmethod
    def init_encoder(self, batch: int) -> TokenizerState:
        """The encoder's state before the first frame."""

    @abstractmethod
    def init_decoder(self, batch: int) -> TokenizerState:
        """The decoder's state before the first latent."""

    @abstractmethod
    def encode_step(self, state: TokenizerState, video: Tensor) -> tuple[TokenizerState, Tensor]:
        """The next frames, and the latents that they complete (perhaps none where time is compressed)."""

    @abstractmethod
    def decode_step(self, state: TokenizerState, latents: Tensor) -> tuple[TokenizerState, Tensor]:
        """The next latents, and their frames."""

    def register_latent_statistics(self, channels: int, mean: list[float] | None, std: list[float] | None) -> None:
        """Make buffers ``mean`` and ``std`` [c] of the config's numbers; None for 0 and 1.

        They come from the config and are not among the weights: they are numbers about the weights. Raises
        ValueError where there are not ``channels`` of them.
        """
        mean, std = mean or [0.0] * channels, std or [1.0] * channels
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"latents_mean and latents_std need {channels} numbers, got {len(mean)}, {len(std)}")
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def check_video(self, video: Tensor) -> None:
        """Raise ValueError unless ``video`` is [b, t, 3, H, W] of this tokenizer's size."""
        if tuple(video.shape[2:]) != (3, *self.image_size):
            raise ValueError(
                f"video must be [b, t, 3, {self.image_size[0]}, {self.image_size[1]}], got {list(video.shape)}"
            )


class FrameTokenizer(VideoTokenizer):
    """A tokenizer that takes each frame by itself, so that there is nothing to remember."""

    def init_encoder(self, batch: int) -> tuple[()]:
        """Nothing."""
        return ()

    def init_decoder(self, batch: int) -> tuple[()]:
        """Nothing."""
        return ()

    def encode_step(self, state: tuple[()], video: Tensor) -> tuple[tuple[()], Tensor]:
        """The next frames, and their latents."""
        return state, self.encode(video)

    def decode_step(self, state: tuple[()], latents: Tensor) -> tuple[tuple[()], Tensor]:
        """The next latents, and their frames."""
        return state, self.decode(latents)
