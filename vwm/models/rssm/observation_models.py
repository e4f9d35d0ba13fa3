"""Observations as embeddings that a world takes in, and back as what it expects to see.

The reconstruction error is a sum over numbers or pixels, and each moment's own: the mean is the caller's.

Legend: b batch, t time, k numbers of a vector, h w pixels, e width of an embedding, d width of features.
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
    """An encoder and a decoder, and how the data look in between.

    Args:
        error: ``"normal"``, minus the log-likelihood under unit variance, which is half the squared error (PlaNet to
            DreamerV2), or ``"squared"`` (DreamerV3).

    Attributes:
        encoder: of what ``prepare`` makes.
        decoder: of features, to the mean of the same.
        width: e.
    """

    encoder: nn.Module
    decoder: nn.Module
    width: int

    def __init__(self, error: ReconstructionLossType) -> None:
        super().__init__()
        if error not in ("normal", "squared"):
            raise ValueError(f"error={error!r} is neither 'normal' nor 'squared'")
        self.share = 0.5 if error == "normal" else 1.0

    @abstractmethod
    def prepare(self, observation: Tensor) -> Tensor:
        """Observations [b, t, ...] as the encoder takes them and the decoder expects them."""

    @abstractmethod
    def undo(self, prepared: Tensor) -> Tensor:
        """The observation [b, t, ...] that this is."""

    def embed(self, prepared: Tensor) -> Tensor:
        """-> [b, t, e]."""
        embedded: Tensor = self.encoder(prepared.flatten(0, 1))
        return embedded.unflatten(0, prepared.shape[:2])

    def expect(self, features: Tensor) -> Tensor:
        """[b, t, d] -> the mean of what is prepared."""
        mean: Tensor = self.decoder(features.flatten(0, 1))
        return mean.unflatten(0, features.shape[:2])

    def loss(self, features: Tensor, prepared: Tensor) -> Tensor:
        """The error of what features [b, t, d] let expect: [b, t]."""
        difference = self.expect(features).flatten(2) - prepared.flatten(2)
        return self.share * difference.float().square().sum(-1)


class VectorObservationModel(ObservationModel):
    """Of float32 [b, t, k].

    Args:
        size: k.
        features: d.
        width, layers, norm, activation: of the layers of both.
        symlog: whether numbers are squeezed (DreamerV3).
        error: see ``ObservationModel``.
    """

    def __init__(
        self,
        size: int,
        features: int,
        width: int = 256,
        layers: int = 3,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        symlog: bool = True,
        error: ReconstructionLossType = "squared",
    ) -> None:
        super().__init__(error)
        if layers < 1:
            raise ValueError(f"layers={layers} of an encoder must be at least 1")
        self.symlog, self.width = symlog, width
        self.encoder = make_dense_mlp(size, width, layers, norm, activation)
        self.decoder = nn.Sequential(
            make_dense_mlp(features, width, layers, norm, activation), make_output_layer(width, size, norm)
        )

    def prepare(self, observation: Tensor) -> Tensor:
        """See ``ObservationModel``."""
        observation = observation.to(next(self.parameters()).dtype)
        return symlog(observation) if self.symlog else observation

    def undo(self, prepared: Tensor) -> Tensor:
        """See ``ObservationModel``: float32."""
        return symexp(prepared.float()) if self.symlog else prepared.float()


class ImageObservationModel(ObservationModel):
    """Of uint8 [b, t, h, w, 3], which are float [b, t, 3, h, w] in [-0.5, 0.5] inside.

    Args:
        image_size: (h, w).
        deter, stoch: widths of the two parts of features.
        style: ``"plain"`` (PlaNet to DreamerV2: 64 x 64 pixels only), ``"pooled"`` (DreamerV3 as published) or
            ``"strided"`` (likewise, with an encoder that costs a quarter).
        depth: channels, see the networks.
        mults: of the channels of ``"pooled"`` and ``"strided"`` layers.
        width: of their decoder's layer.
        blocks: of their decoder's matrix.
        norm, activation: of the layers.
        bits: of a pixel that are kept (PlaNet: 5); what is cut off is filled with noise in training.
        error: see ``ObservationModel``.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        deter: int,
        stoch: int,
        style: ImageNetworkType = "pooled",
        depth: int = 16,
        mults: Sequence[int] = (2, 3, 4, 4),
        width: int = 256,
        blocks: int = 8,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        bits: int = 8,
        error: ReconstructionLossType = "squared",
    ) -> None:
        super().__init__(error)
        if not 1 <= bits <= 8:
            raise ValueError(f"bits={bits} of a pixel must lie in 1..8")
        self.bits = bits
        if style == "plain":
            if tuple(image_size) != (64, 64):
                raise ValueError(f"the plain networks are for 64x64 pixels, not {image_size[0]}x{image_size[1]}")
            encoder: PlainImageEncoder | DreamerV3ImageEncoder = PlainImageEncoder(depth, activation)
            self.decoder = PlainImageDecoder(deter + stoch, depth, activation)
        elif style in ("pooled", "strided"):
            encoder = DreamerV3ImageEncoder(image_size, depth, mults, norm, activation, pooled=style == "pooled")
            self.decoder = DreamerV3ImageDecoder(
                image_size, deter, stoch, width, blocks, depth, mults, norm, activation
            )
        else:
            raise ValueError(f"style={style!r} is none of 'plain', 'pooled', 'strided'")
        self.encoder, self.width = encoder, encoder.width

    def prepare(self, observation: Tensor) -> Tensor:
        """See ``ObservationModel``."""
        levels = 2**self.bits
        pixels = observation.permute(0, 1, 4, 2, 3)
        if self.bits == 8:
            return (pixels / 255 - 0.5).to(next(self.parameters()).dtype)
        kept = (pixels // (256 // levels)).to(next(self.parameters()).dtype)
        within = torch.rand_like(kept) if self.training else 0.5
        return (kept + within) / levels - 0.5

    def undo(self, prepared: Tensor) -> Tensor:
        """See ``ObservationModel``: uint8."""
        pixels = (prepared.float() + 0.5) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)
