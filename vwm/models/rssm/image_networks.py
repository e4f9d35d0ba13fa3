"""Pictures in and out of a latent world: the plain networks of PlaNet to DreamerV2, the normalised ones of DreamerV3.

Pictures are float [n, 3, h, w] in [-0.5, 0.5] here. Channels lie last in memory, which convolutions on CPUs and tensor
cores like better, and by which a norm over channels is one over the last dimension.

Legend: n pictures, h w pixels, c channels, d width of features, e of an embedding.
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
    """Four convolutions of 4x4 pixels with stride 2, no padding (World Models, arXiv 1803.10122, figure 22).

    Args:
        depth: channels of the first; each has twice those of the one before.
        activation: after each.

    Attributes:
        width: e, of an embedding.
    """

    def __init__(self, depth: int = 32, activation: ActivationType = "relu") -> None:
        super().__init__()
        sizes = [3, *(depth * 2**i for i in range(4))]
        self.layers = nn.ModuleList(_init_conv(nn.Conv2d(a, b, 4, stride=2), "none") for a, b in pairwise(sizes))
        self.activation, self.width = activation, 2 * 2 * sizes[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        """[n, 3, 64, 64] -> [n, e]."""
        x = pictures
        for layer in self.layers:
            x = apply_activation(layer(x), self.activation)
        return x.flatten(1)


class PlainImageDecoder(nn.Module):
    """One matrix and four transposed convolutions with stride 2 (likewise).

    Args:
        inputs: d.
        depth: channels of the last but one; each has twice those of the one after.
        activation: between them.
    """

    def __init__(self, inputs: int, depth: int = 32, activation: ActivationType = "relu") -> None:
        super().__init__()
        sizes = [32 * depth, 4 * depth, 2 * depth, depth, 3]
        self.start = make_output_layer(inputs, sizes[0], "none")
        self.layers = nn.ModuleList(
            _init_conv(nn.ConvTranspose2d(a, b, kernel, stride=2), "none")
            for a, b, kernel in zip(sizes, sizes[1:], (5, 5, 6, 6), strict=False)
        )
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, 3, 64, 64], the mean of each pixel."""
        x: Tensor = self.start(features)[:, :, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(apply_activation(x, self.activation) if i else x)
        return x


class DreamerV3ImageEncoder(nn.Module):
    """Convolutions that each halve the picture, with norm and activation (DreamerV3).

    Args:
        image_size: (h, w).
        depth, mults: channels of a layer are their product.
        norm, activation: after each.
        pooled: whether the picture is halved by the largest of four (as published), or by the convolution's stride,
            which is about four times quicker.
        kernel: side of the convolutions, an odd number.

    Attributes:
        width: e, of an embedding.

    Raises:
        ValueError: pictures that cannot be halved so often.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        depth: int = 16,
        mults: Sequence[int] = (2, 3, 4, 4),
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        pooled: bool = True,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        height, width = _coarsest_size(image_size, len(mults))
        sizes = [3, *(depth * m for m in mults)]
        stride = 1 if pooled else 2
        self.layers = nn.ModuleList(
            _init_conv(nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2), norm) for a, b in pairwise(sizes)
        )
        self.norms = nn.ModuleList(make_norm_layer(norm, size) for size in sizes[1:])
        self.pooled, self.activation, self.width = pooled, activation, height * width * sizes[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, e]."""
        x = pictures
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            x = F.max_pool2d(x, 2) if self.pooled else x
            x = _norm_activate_channels(norm, x, self.activation)
        return x.permute(0, 2, 3, 1).flatten(1)


class DreamerV3ImageDecoder(nn.Module):
    """From a state to a small picture of many channels, and from there by doubling and convolution (DreamerV3).

    The deterministic part comes in by a block-diagonal matrix, whose blocks make channels of their own.

    Args:
        image_size: (h, w).
        deter, stoch: widths of the two parts of features.
        width: of the layer over the stochastic part, twice.
        blocks: of the matrix.
        depth, mults, norm, activation, kernel: as of the encoder.

    Raises:
        ValueError: pictures that cannot be halved so often, or sizes that the blocks do not divide.
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
        self.small = _coarsest_size(image_size, len(mults))
        sizes = [*(depth * m for m in reversed(mults)), 3]
        numbers = self.small[0] * self.small[1] * sizes[0]
        if deter % blocks or sizes[0] % blocks:
            raise ValueError(f"blocks={blocks} must divide deter={deter} and the decoder's {sizes[0]} channels")
        self.deter, self.blocks, self.activation = deter, blocks, activation
        self.of_deter = BlockLinear(deter, numbers, blocks)
        init_dense_weight(self.of_deter.weight, deter // blocks, numbers // blocks, norm)
        self.of_stoch = nn.Sequential(
            MultiInputDense([stoch], 2 * width, norm, activation), make_output_layer(2 * width, numbers, norm)
        )
        self.layers = nn.ModuleList(UpsampleConv2d(a, b, kernel, norm) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(make_norm_layer(norm, size) for size in sizes[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """[n, d] -> [n, 3, h, w], the mean of each pixel."""
        deter, stoch = features[:, : self.deter], features[:, self.deter :]
        height, width = self.small
        # Blocks make channels [g, h, w, c / g] -> [h, w, g c / g].
        x = self.of_deter(deter)[:, 0].unflatten(1, (self.blocks, height, width, -1)).permute(0, 2, 3, 1, 4).flatten(3)
        x = (x + self.of_stoch(stoch).unflatten(1, (height, width, -1))).permute(0, 3, 1, 2)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(_norm_activate_channels(norm, x, self.activation))
        return x.sigmoid() - 0.5


class UpsampleConv2d(nn.Module):
    """A convolution over a picture whose pixels were each repeated to 2 x 2, at a third of the work.

    Every pixel of the result sees only some pixels of the small picture, many of them several times: its kernel over
    the small picture is the sum of weights that meet the same pixel. There are four such kernels, one for each place
    in a 2 x 2 square; the four results are shuffled into one picture.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution, an odd number.
        norm: see ``init_dense_weight``.
    """

    meets: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 5, norm: NormType = "rms") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        init_dense_weight(self.weight, inputs * kernel**2, outputs * kernel**2, norm)
        # [place, offset in the small picture, tap]: whether this tap, seen from this place, meets the pixel there.
        reach = kernel // 2
        farthest = (reach + 1) // 2
        self.reach = farthest
        meets = torch.zeros(2, 2 * farthest + 1, kernel)
        for place in range(2):
            for tap in range(kernel):
                meets[place, (place + tap - reach) // 2 + farthest, tap] = 1
        self.register_buffer("meets", meets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, 2 h, 2 w]."""
        meets = self.meets.to(self.weight.dtype)
        weight = torch.einsum("pak,qbl,oikl->opqiab", meets, meets, self.weight).flatten(0, 2)
        return F.pixel_shuffle(F.conv2d(x, weight, self.bias.repeat_interleave(4), padding=self.reach), 2)


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
        raise ValueError(f"pictures of {height}x{width} pixels cannot be halved {halvings} times")
    return height // 2**halvings, width // 2**halvings
