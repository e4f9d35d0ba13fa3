"""Image encoders and decoders: the plain networks of PlaNet to DreamerV2, and the normalized ones of DreamerV3.

Images are float [n, 3, h, w] in [-0.5, 0.5]. Channels are last in memory (channels_last), which convolutions prefer on
CPUs and tensor cores and which makes a normalization over channels one over the last dimension.

Dimensions: n images, h w pixels, c channels, d feature size, e embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.block_linear import BlockLinear
from vwm.nn.dense_layers import (
    ActivationType,
    MultiInputDense,
    NormType,
    apply_activation,
    init_dense_weight,
    make_norm_layer,
    make_output_layer,
)


class PlainImageEncoder(nn.Module):
    """Four 4x4 convolutions with stride 2 and no padding (World Models, arXiv 1803.10122, figure 22).

    Args:
        depth: Channels of the first convolution; each following one doubles them.
        activation: Activation after each convolution.

    Attributes:
        embedding_size: e.
    """

    def __init__(self, depth: int = 32, activation: ActivationType = "relu") -> None:
        super().__init__()
        channels = [3, *(depth * 2**i for i in range(4))]
        self.layers = nn.ModuleList(_init_conv(nn.Conv2d(a, b, 4, stride=2), "none") for a, b in pairwise(channels))
        self.activation = activation
        self.embedding_size = 2 * 2 * channels[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode [n, 3, 64, 64] -> [n, e]."""
        x = images
        for layer in self.layers:
            x = apply_activation(layer(x), self.activation)
        return x.flatten(1)


class PlainImageDecoder(nn.Module):
    """Linear layer and four transposed convolutions with stride 2 (World Models, arXiv 1803.10122, figure 22).

    Args:
        feature_size: d.
        depth: Channels of the last but one layer; each earlier one doubles them.
        activation: Activation between the convolutions.
    """

    def __init__(self, feature_size: int, depth: int = 32, activation: ActivationType = "relu") -> None:
        super().__init__()
        channels = [32 * depth, 4 * depth, 2 * depth, depth, 3]
        self.input_projection = make_output_layer(feature_size, channels[0], "none")
        self.layers = nn.ModuleList(
            _init_conv(nn.ConvTranspose2d(a, b, kernel, stride=2), "none")
            for a, b, kernel in zip(channels, channels[1:], (5, 5, 6, 6), strict=False)
        )
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean of each pixel: [n, d] -> [n, 3, 64, 64]."""
        x: Tensor = self.input_projection(features)[:, :, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(apply_activation(x, self.activation) if i else x)
        return x


class DreamerV3ImageEncoder(nn.Module):
    """Convolutions with normalization and activation, each of which halves the image (DreamerV3).

    Args:
        image_size: (h, w).
        depth: Base number of channels.
        mults: Channel multipliers: layer i has ``depth * mults[i]`` channels.
        norm: Normalization over channels.
        activation: Activation after each convolution.
        max_pool: Whether 2x2 max pooling halves the image (as published) or the stride of the convolution, which is
            about four times faster.
        kernel: Kernel size of the convolutions, odd.

    Attributes:
        embedding_size: e.

    Raises:
        ValueError: The image size is not divisible by 2 to the number of layers.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        depth: int = 16,
        mults: Sequence[int] = (2, 3, 4, 4),
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        max_pool: bool = True,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        height, width = _coarsest_size(image_size, len(mults))
        channels = [3, *(depth * m for m in mults)]
        stride = 1 if max_pool else 2
        self.layers = nn.ModuleList(
            _init_conv(nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2), norm) for a, b in pairwise(channels)
        )
        self.norms = nn.ModuleList(make_norm_layer(norm, size) for size in channels[1:])
        self.max_pool = max_pool
        self.activation = activation
        self.embedding_size = height * width * channels[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode [n, 3, h, w] -> [n, e]."""
        x = images
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            x = F.max_pool2d(x, 2) if self.max_pool else x
            x = _norm_activate_channels(norm, x, self.activation)
        return x.permute(0, 2, 3, 1).flatten(1)


class DreamerV3ImageDecoder(nn.Module):
    """Projection of a state to a coarse grid, followed by upsampling convolutions (DreamerV3).

    A block-diagonal layer projects the deterministic part; each of its blocks produces its own channels.

    Args:
        image_size: (h, w).
        deter: Size of the deterministic part of the features.
        stoch: Size of the stochastic part of the features.
        width: Half the width of the hidden layer over the stochastic part.
        blocks: Number of blocks of the block-diagonal layer.
        depth, mults, norm, activation, kernel: See ``DreamerV3ImageEncoder``.

    Raises:
        ValueError: The image size is not divisible by 2 to the number of layers, or ``blocks`` does not divide
            ``deter`` and the channels of the coarse grid.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        deter: int,
        stoch: int,
        width: int = 256,
        blocks: int = 8,
        depth: int = 16,
        mults: Sequence[int] = (2, 3, 4, 4),
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        kernel: int = 5,
    ) -> None:
        super().__init__()
        self.coarse_size = _coarsest_size(image_size, len(mults))
        channels = [*(depth * m for m in reversed(mults)), 3]
        grid_size = self.coarse_size[0] * self.coarse_size[1] * channels[0]
        if deter % blocks or channels[0] % blocks:
            raise ValueError(f"blocks={blocks} must divide deter={deter} and the decoder's {channels[0]} channels")
        self.deter = deter
        self.blocks = blocks
        self.activation = activation
        self.deter_projection = BlockLinear(deter, grid_size, blocks)
        init_dense_weight(self.deter_projection.weight, deter // blocks, grid_size // blocks, norm)
        self.stoch_projection = nn.Sequential(
            MultiInputDense([stoch], width=2 * width, norm=norm, activation=activation),
            make_output_layer(2 * width, grid_size, norm),
        )
        self.layers = nn.ModuleList(UpsampleConv2d(a, b, kernel=kernel, norm=norm) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(make_norm_layer(norm, size) for size in channels[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean of each pixel: [n, d] -> [n, 3, h, w]."""
        deter = features[:, : self.deter]
        stoch = features[:, self.deter :]
        height, width = self.coarse_size
        # Each block produces its own channels: [n, g, h, w, c / g] -> [n, h, w, c].
        grid = self.deter_projection(deter)[:, 0].unflatten(1, (self.blocks, height, width, -1))
        x = grid.permute(0, 2, 3, 1, 4).flatten(3)
        x = (x + self.stoch_projection(stoch).unflatten(1, (height, width, -1))).permute(0, 3, 1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(_norm_activate_channels(norm, x, self.activation))
        return x.sigmoid() - 0.5


class UpsampleConv2d(nn.Module):
    """Nearest-neighbor upsampling by 2 followed by a convolution, fused at a third of the cost.

    After the upsampling, several weights of the kernel multiply the same input pixel, so each output pixel is a smaller
    convolution of the input whose weights are sums of these. There are four such kernels, one per position in a 2 x 2
    square of output pixels; ``pixel_shuffle`` interleaves the four results.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Kernel size of the convolution, odd.
        norm: See ``init_dense_weight``.
    """

    kernel_sums: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5, norm: NormType = "rms") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        init_dense_weight(self.weight, in_channels * kernel**2, out_channels * kernel**2, norm)
        radius = kernel // 2
        self.padding = (radius + 1) // 2
        # [position, input offset, tap]: whether this tap multiplies the input pixel at the offset.
        kernel_sums = torch.zeros(2, 2 * self.padding + 1, kernel)
        for position in range(2):
            for tap in range(kernel):
                kernel_sums[position, (position + tap - radius) // 2 + self.padding, tap] = 1
        self.register_buffer("kernel_sums", kernel_sums, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample and convolve: [n, in_channels, h, w] -> [n, out_channels, 2 h, 2 w]."""
        sums = self.kernel_sums.to(self.weight.dtype)
        weight = torch.einsum("pak,qbl,oikl->opqiab", sums, sums, self.weight).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(x, weight, self.bias.repeat_interleave(4), padding=self.padding), 2)


def _init_conv(layer: nn.Conv2d | nn.ConvTranspose2d, norm: NormType) -> nn.Module:
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    init_dense_weight(layer.weight, layer.in_channels * taps, layer.out_channels * taps, norm)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _norm_activate_channels(norm: nn.Module, x: Tensor, activation: ActivationType) -> Tensor:
    return apply_activation(norm(x.permute(0, 2, 3, 1)), activation).permute(0, 3, 1, 2)


def _coarsest_size(image_size: tuple[int, int], halvings: int) -> tuple[int, int]:
    height, width = image_size
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(f"images of {height}x{width} pixels cannot be halved {halvings} times")
    return height // 2**halvings, width // 2**halvings
