"""The interface of tokenizers: video to latents and back, a whole clip at once or frame by frame.

Legend: b batch, t time, t' latents in time, h w the grid of latents, H W pixels, c channels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vwm.core.network_base import ConfigMixin, ModelMixin

TokenizerState = Any
"""A nested tuple of tensors, each with the batch dimension first (see ``vwm.core.states``)."""


class TokenizerOutput(NamedTuple):
    """Output of a tokenizer in training.

    Attributes:
        video: the reconstruction, float [b, t, 3, H, W].
        latents: tokens int64 [b, t', h, w], or float [b, t', h, w, c].
        penalty: regularization loss, scalar: the commitment loss of a codebook, or a weighted KL divergence; or 0.
    """

    video: Tensor
    latents: Tensor
    penalty: Tensor


class VideoTokenizer(ModelMixin, ConfigMixin):
    """Encode video, float [b, t, 3, H, W] in [-1, 1], to latents and decode it.

    Latents are tokens (int64 [b, t', h, w]) or continuous (float [b, t', h, w, c], with about zero mean and unit
    standard deviation per channel). Streaming gives the same results as the parallel methods, for every chunking.

    Attributes:
        image_size: (H, W) in pixels.
        grid: (h, w) of the latents.
        time_compression: number of frames per latent; the first latent always holds one frame.
        codebook_size: number of codes; 0 for continuous latents.
        channels: c of continuous latents; 0 for tokens.
    """

    image_size: tuple[int, int]
    grid: tuple[int, int]
    time_compression: int = 1
    codebook_size: int = 0
    channels: int = 0

    @property
    def tokens_per_frame(self) -> int:
        """Number of latents per frame, h * w."""
        return self.grid[0] * self.grid[1]

    def initialize_from_data(self, video: Tensor) -> None:
        """Initialize from the first batch of a training, float [b, t, 3, H, W]. Does nothing by default."""

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode with gradients: float [b, t, 3, H, W] in [-1, 1]. By default there is no penalty."""
        latents = self.encode(video)
        return TokenizerOutput(self.decode(latents), latents, video.new_zeros(()))

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Encode: float [b, t, 3, H, W] -> latents."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode: latents -> float [b, t, 3, H, W]."""

    @abstractmethod
    def init_encoder(self, batch: int) -> TokenizerState:
        """Return the state of the encoder before the first frame."""

    @abstractmethod
    def init_decoder(self, batch: int) -> TokenizerState:
        """Return the state of the decoder before the first latent."""

    @abstractmethod
    def encode_step(self, state: TokenizerState, video: Tensor) -> tuple[TokenizerState, Tensor]:
        """Encode the next frames; return the state and the latents that they complete, which may be none."""

    @abstractmethod
    def decode_step(self, state: TokenizerState, latents: Tensor) -> tuple[TokenizerState, Tensor]:
        """Decode the next latents; return the state and their frames."""

    def register_latent_statistics(self, channels: int, mean: list[float] | None, std: list[float] | None) -> None:
        """Register the buffers ``mean`` and ``std`` [c] from values in the config; None for 0 and 1.

        They are saved in the config, not with the weights. Raises ValueError unless there are ``channels`` values.
        """
        mean, std = mean or [0.0] * channels, std or [1.0] * channels
        if len(mean) != channels or len(std) != channels:
            raise ValueError(f"latents_mean and latents_std need {channels} values, got {len(mean)}, {len(std)}")
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def check_latents_of(self, grid: tuple[int, int], channels: int) -> None:
        """Raise ValueError unless latents are what a dynamics takes: its ``grid`` and ``channels``."""
        if (tuple(self.grid), self.channels) != (grid, channels):
            raise ValueError(
                f"the tokenizer gives latents {list(self.grid)} x {self.channels}, the dynamics takes {list(grid)} x "
                f"{channels}"
            )

    def check_video(self, video: Tensor) -> None:
        """Raise ValueError unless ``video`` is [b, t, 3, H, W] with the size of this tokenizer."""
        if tuple(video.shape[2:]) != (3, *self.image_size):
            raise ValueError(
                f"video must be [b, t, 3, {self.image_size[0]}, {self.image_size[1]}], got {list(video.shape)}"
            )


class FrameTokenizer(VideoTokenizer):
    """A tokenizer that processes each frame independently and therefore has no state."""

    def init_encoder(self, batch: int) -> tuple[()]:
        """Return the empty state."""
        return ()

    def init_decoder(self, batch: int) -> tuple[()]:
        """Return the empty state."""
        return ()

    def encode_step(self, state: tuple[()], video: Tensor) -> tuple[tuple[()], Tensor]:
        """Encode the next frames; return the state and their latents."""
        return state, self.encode(video)

    def decode_step(self, state: tuple[()], latents: Tensor) -> tuple[tuple[()], Tensor]:
        """Decode the next latents; return the state and their frames."""
        return state, self.decode(latents)
