"""TAEHV: tiny decoders for the latents of large video autoencoders (madebyollin/taehv, MIT licence), by their layout.

Everything is a two-dimensional convolution of single frames. Blocks with memory also see the frame before, and growing
layers make several frames of one. Decoders take latents as diffusion models do, normalized.

Legend: b batch, t time, c channels, h w space, r frames per latent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vwm.core.components import ComponentError
from vwm.tokenizers.video_vae.stream import Stream


class TinyDecoderConfig(NamedTuple):
    """Sizes of a TAEHV decoder.

    Attributes:
        latent_channels: c of the latents.
        widths: channels of the three levels and of the last layer.
        time_strides: number of frames that each level makes of one.
        patch_size: side of the squares of pixels that the last layer gives.
        is_super: whether it is a "super" decoder, with depthwise convolutions and pixel shuffles.
    """

    latent_channels: int = 16
    widths: Sequence[int] = (256, 128, 64, 64)
    time_strides: Sequence[int] = (1, 2, 2)
    patch_size: int = 1
    is_super: bool = False


class MemoryBlock(nn.Module):
    """A residual block that sees a frame and the one before it; zeros precede the first frame."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        inner = [_conv(2 * width, out), nn.ReLU(), _conv(out, out), nn.ReLU(), _conv(out, out)]
        self.conv = nn.Sequential(*inner)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """[b, t, c, h, w] -> the same shape."""
        return F.relu(self._convolve(x, stream) + x)

    def _convolve(self, x: Tensor, stream: Stream) -> Tensor:
        before = stream.with_past(x.transpose(1, 2), 1).transpose(1, 2)[:, :-1]
        pairs = torch.cat((x, before), dim=2)
        return self.conv(pairs.flatten(0, 1)).unflatten(0, x.shape[:2])


class WideMemoryBlock(MemoryBlock):
    """The block of "super" decoders: a depthwise 7 x 7 convolution, then an inverted bottleneck."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(1, 1)
        depthwise = nn.Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False)
        self.conv = nn.Sequential(
            depthwise, nn.Conv2d(2 * width, 4 * width, 1), nn.ReLU(), nn.Conv2d(4 * width, out, 1, bias=False)
        )

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """[b, t, c, h, w] -> the same shape."""
        return self._convolve(x, stream) + x


class TimeGrow(nn.Module):
    """Make ``stride`` frames of one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b t, c, h, w] -> [b t stride, c, h, w]."""
        return self.conv(x).unflatten(1, (-1, self.width)).flatten(0, 1)


class SoftClamp(nn.Module):
    """Limit values smoothly to -3 to 3."""

    def forward(self, x: Tensor) -> Tensor:
        """Limit each value."""
        return 3 * torch.tanh(x / 3)


class TinyVideoDecoder(nn.Module):
    """A TAEHV decoder: latents to pixels. The names of its weights are those of the published files.

    Args:
        config: its sizes.
    """

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.time_compression = 1
        for stride in config.time_strides:
            self.time_compression *= stride
        self.decoder = nn.Sequential(*(_super_layers if config.is_super else _base_layers)(config))

    def forward(self, latents: Tensor, stream: Stream) -> Tensor:
        """Decode the next latents, normalized [b, t, c, h, w] -> [b, r t, 3, H, W] in [-1, 1], r - 1 fewer at first."""
        batch, x = len(latents), latents
        for layer in self.decoder:
            by_frame = not isinstance(layer, MemoryBlock)
            x = layer(x.flatten(0, 1)).unflatten(0, (batch, -1)) if by_frame else layer(x, stream)
        pixels = F.pixel_shuffle(x, self.patch_size).clamp(0, 1) * 2 - 1
        return pixels[:, self.time_compression - 1 :] if stream.is_first else pixels


def read_tiny_decoder(file: str | os.PathLike[str]) -> TinyVideoDecoder:
    """Read a published decoder, ``.safetensors`` or ``.pth``, for example ``taew2_1.safetensors``.

    Its sizes follow from the weights. The encoder in the file is checked and left out: it looks at frames after those
    that its latent stands for, so that it cannot encode step by step.

    Raises:
        FileNotFoundError: there is no such file.
        ComponentError: the file holds anything else than the weights of a TAEHV autoencoder.
    """
    weights = _read_weights(Path(file))
    config = _infer_config(weights, str(file))
    with torch.device("meta"):
        decoder, layouts = TinyVideoDecoder(config), []
        if any(name.startswith("encoder.") for name in weights):
            layouts.append(_encoder_layout(weights, config))
    expected = {name: list(weight.shape) for name, weight in decoder.state_dict().items()}
    for layout in layouts:
        expected |= {f"encoder.{name}": list(weight.shape) for name, weight in layout.state_dict().items()}
    stored = {name: list(weight.shape) for name, weight in weights.items()}
    wrong = sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
    if wrong:
        raise ComponentError(
            f"{file}: no TAEHV autoencoder of {config}: {wrong[0]} is {stored.get(wrong[0], 'missing')} there and "
            f"{expected.get(wrong[0], 'unknown')} here ({len(wrong)} such weights)"
        )
    decoder = decoder.to_empty(device="cpu")
    decoder.load_state_dict({name: weight for name, weight in weights.items() if name.startswith("decoder.")})
    if not all(parameter.isfinite().all() for parameter in decoder.parameters()):
        raise ComponentError(f"{file}: has weights that are not finite")
    return decoder.float().eval().requires_grad_(False)


def infer_tiny_decoder_config(decoder: TinyVideoDecoder) -> TinyDecoderConfig:
    """Return the sizes of a decoder."""
    return _infer_config(decoder.state_dict(), "this decoder")


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types of errors for a damaged file
        raise ComponentError(f"{file}: cannot be read as weights ({type(error).__name__}: {error})") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ComponentError(f"{file}: holds a {type(weights).__name__}, not weights by name")
    return weights


def _infer_config(weights: Mapping[str, Tensor], where: str) -> TinyDecoderConfig:
    is_super = "decoder.0.weight" in weights
    grows = (7, 14, 21) if is_super else (7, 13, 19)
    try:
        shapes = [weights[f"decoder.{i}.conv.weight"].shape for i in grows]
        if is_super:  # a level grows in the width of the next one
            first = weights["decoder.0.weight"].shape
            widths = [first[0], *(shape[1] for shape in shapes)]
        else:
            first = weights["decoder.1.weight"].shape
            widths = [*(shape[1] for shape in shapes), weights["decoder.20.weight"].shape[0]]
        last = weights["decoder.22.weight"].shape[0]
        strides = [shape[0] // shape[1] for shape in shapes]
        patch_size = round((last / 3) ** 0.5)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ComponentError(f"{where}: no TAEHV autoencoder, whose weights it lacks ({error})") from error
    return TinyDecoderConfig(first[1], widths, strides, patch_size, is_super)


def _base_layers(config: TinyDecoderConfig) -> list[nn.Module]:
    widths = config.widths
    layers: list[nn.Module] = [SoftClamp(), _conv(config.latent_channels, widths[0]), nn.ReLU()]
    for width, out, stride in zip(widths, widths[1:], config.time_strides, strict=False):
        layers += [MemoryBlock(width, width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TimeGrow(width, stride), _conv(width, out, bias=False)]
    return [*layers, nn.ReLU(), _conv(widths[-1], 3 * config.patch_size**2)]


def _super_layers(config: TinyDecoderConfig) -> list[nn.Module]:
    widths = config.widths
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 1, bias=False)]
    for width, out, stride in zip(widths, widths[1:], config.time_strides, strict=False):
        layers += [WideMemoryBlock(width, width) for _ in range(3)]
        layers += [_conv(width, 4 * out), nn.ReLU(), nn.PixelShuffle(2), TimeGrow(out, stride)]
    return [*layers, _conv(widths[-1], 3 * config.patch_size**2)]


def _encoder_layout(weights: Mapping[str, Tensor], config: TinyDecoderConfig) -> nn.Sequential:
    """Names and shapes of the encoder's weights; the strides in time stand in its own."""
    first = weights.get("encoder.0.weight")
    width = 64 if first is None else first.shape[0]
    layers: list[nn.Module] = [_conv(3 * config.patch_size**2, width), nn.ReLU()]
    for i in (2, 7, 12):
        pool = weights.get(f"encoder.{i}.conv.weight")
        inputs = width if pool is None or pool.ndim < 2 else pool.shape[1]
        layers += [nn.Sequential(), _conv(width, width, bias=False), *(MemoryBlock(width, width) for _ in range(3))]
        layers[i].add_module("conv", nn.Conv2d(inputs, width, 1, bias=False))
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def _conv(channels: int, out: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias)
