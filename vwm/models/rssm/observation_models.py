"""Observation models: encoder, decoder and reconstruction loss for vectors and images.

The reconstruction loss is summed over numbers or pixels and kept per time step; averaging is left to the caller.

Dimensions: b batch, t time, k numbers of a vector, h w pixels, e embedding size, d feature size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vwm.models.rssm.image_networks import (
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    PlainImageDecoder,
    PlainImageEncoder,
)
from vwm.nn.dense_layers import ActivationType, NormType, make_dense_mlp, make_output_layer
from vwm.nn.two_hot import symexp, symlog

ReconstructionLossType = Literal["normal", "squared"]
ImageNetworkType = Literal["plain", "pooled", "strided"]


class ObservationModel(nn.Module, ABC):
    """Encoder and decoder of observations.

    Args:
        reconstruction_loss: ``"normal"``: negative log-likelihood under unit variance without constants, which is half
            the squared error (PlaNet to DreamerV2). ``"squared"``: squared error (DreamerV3).

    Attributes:
        encoder: Maps preprocessed observations to embeddings.
        decoder: Maps features to the mean of the preprocessed observations.
        embedding_size: e.

    Raises:
        ValueError: Unknown ``reconstruction_loss``.
    """

    encoder: nn.Module
    decoder: nn.Module
    embedding_size: int

    def __init__(self, reconstruction_loss: ReconstructionLossType) -> None:
        super().__init__()
        if reconstruction_loss not in ("normal", "squared"):
            raise ValueError(f"reconstruction_loss={reconstruction_loss!r} must be 'normal' or 'squared'")
        self.loss_scale = 0.5 if reconstruction_loss == "normal" else 1.0

    @abstractmethod
    def preprocess(self, observation: Tensor) -> Tensor:
        """Convert observations [b, t, ...] to encoder inputs, which are also the decoder's targets."""

    @abstractmethod
    def postprocess(self, preprocessed: Tensor) -> Tensor:
        """Convert preprocessed observations [b, t, ...] back to observations."""

    def encode(self, preprocessed: Tensor) -> Tensor:
        """Embed preprocessed observations: [b, t, ...] -> [b, t, e]."""
        embeddings: Tensor = self.encoder(preprocessed.flatten(0, 1))
        return embeddings.unflatten(0, preprocessed.shape[:2])

    def decode(self, features: Tensor) -> Tensor:
        """Return the mean of the preprocessed observations: features [b, t, d] -> [b, t, ...]."""
        mean: Tensor = self.decoder(features.flatten(0, 1))
        return mean.unflatten(0, features.shape[:2])

    def loss(self, features: Tensor, preprocessed: Tensor) -> Tensor:
        """Return the reconstruction loss per time step: features [b, t, d] and targets [b, t, ...] -> [b, t]."""
        difference = self.decode(features).flatten(2) - preprocessed.flatten(2)
        return self.loss_scale * difference.float().square().sum(-1)


class VectorObservationModel(ObservationModel):
    """Observation model of vectors, float32 [b, t, k].

    Args:
        vector_size: k.
        feature_size: d.
        width: Width of the hidden layers of encoder and decoder; also e.
        layers: Hidden layers of each.
        norm: Normalization of the hidden layers.
        activation: Activation of the hidden layers.
        symlog: Whether inputs and targets are symlog-transformed (DreamerV3).
        reconstruction_loss: See ``ObservationModel``.

    Raises:
        ValueError: ``layers`` is below 1.
    """

    def __init__(
        self,
        vector_size: int,
        feature_size: int,
        width: int = 256,
        layers: int = 3,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        symlog: bool = True,
        reconstruction_loss: ReconstructionLossType = "squared",
    ) -> None:
        super().__init__(reconstruction_loss)
        if layers < 1:
            raise ValueError(f"layers={layers} of the vector encoder must be at least 1")
        self.symlog = symlog
        self.embedding_size = width
        self.encoder = make_dense_mlp(vector_size, width, layers, norm, activation)
        self.decoder = nn.Sequential(
            make_dense_mlp(feature_size, width, layers, norm, activation), make_output_layer(width, vector_size, norm)
        )

    def preprocess(self, observation: Tensor) -> Tensor:
        """See ``ObservationModel``."""
        observation = observation.to(next(self.parameters()).dtype)
        return symlog(observation) if self.symlog else observation

    def postprocess(self, preprocessed: Tensor) -> Tensor:
        """See ``ObservationModel``; returns float32."""
        return symexp(preprocessed.float()) if self.symlog else preprocessed.float()


class ImageObservationModel(ObservationModel):
    """Observation model of images, uint8 [b, t, h, w, 3]; preprocessed: float [b, t, 3, h, w] in [-0.5, 0.5].

    Args:
        image_size: (h, w).
        deter: Size of the deterministic part of the features.
        stoch: Size of the stochastic part of the features.
        network: ``"plain"`` (PlaNet to DreamerV2: 64 x 64 pixels only), ``"pooled"`` (DreamerV3 as published) or
            ``"strided"`` (DreamerV3 with strided convolutions instead of pooling, at a quarter of the encoder's cost).
        depth: Base number of channels, see the networks.
        mults: Channel multipliers of the ``"pooled"`` and ``"strided"`` layers.
        width: Width of the hidden layer in their decoder.
        blocks: Number of blocks of the block-diagonal layer in their decoder.
        norm: Normalization of their layers.
        activation: Activation function.
        pixel_bits: Bits per color channel that are kept (PlaNet: 5); in training, uniform noise replaces the others.
        reconstruction_loss: See ``ObservationModel``.

    Raises:
        ValueError: An unknown network, unsupported image size or ``pixel_bits`` outside 1..8.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        deter: int,
        stoch: int,
        network: ImageNetworkType = "pooled",
        depth: int = 16,
        mults: Sequence[int] = (2, 3, 4, 4),
        width: int = 256,
        blocks: int = 8,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        pixel_bits: int = 8,
        reconstruction_loss: ReconstructionLossType = "squared",
    ) -> None:
        super().__init__(reconstruction_loss)
        if not 1 <= pixel_bits <= 8:
            raise ValueError(f"pixel_bits={pixel_bits} must lie in 1..8")
        self.pixel_bits = pixel_bits
        if network == "plain":
            if tuple(image_size) != (64, 64):
                raise ValueError(
                    f"the 'plain' image networks require 64x64 pixels, not {image_size[0]}x{image_size[1]}; "
                    "resize the images or use network='pooled'"
                )
            encoder: PlainImageEncoder | DreamerV3ImageEncoder = PlainImageEncoder(depth, activation)
            self.decoder = PlainImageDecoder(deter + stoch, depth, activation)
        elif network in ("pooled", "strided"):
            encoder = DreamerV3ImageEncoder(
                image_size, depth=depth, mults=mults, norm=norm, activation=activation, max_pool=network == "pooled"
            )
            self.decoder = DreamerV3ImageDecoder(
                image_size,
                deter=deter,
                stoch=stoch,
                width=width,
                blocks=blocks,
                depth=depth,
                mults=mults,
                norm=norm,
                activation=activation,
            )
        else:
            raise ValueError(f"network={network!r} must be 'plain', 'pooled' or 'strided'")
        self.encoder = encoder
        self.embedding_size = encoder.embedding_size

    def preprocess(self, observation: Tensor) -> Tensor:
        """See ``ObservationModel``."""
        levels = 2**self.pixel_bits
        pixels = observation.permute(0, 1, 4, 2, 3)
        if self.pixel_bits == 8:
            return (pixels / 255 - 0.5).to(next(self.parameters()).dtype)
        level = (pixels // (256 // levels)).to(next(self.parameters()).dtype)
        offset = torch.rand_like(level) if self.training else 0.5
        return (level + offset) / levels - 0.5

    def postprocess(self, preprocessed: Tensor) -> Tensor:
        """See ``ObservationModel``; returns uint8."""
        pixels = (preprocessed.float() + 0.5) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
