"""The autoencoder of Waypoint 1: a convolutional one that sees frames as squares, frame by frame.

The names of the weights are the published ones, with the norms of weights multiplied in.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import FrameTokenizer

GROUP_CHANNELS = 16


class WaypointAutoencoder(FrameTokenizer):
    """Encode frames to continuous latents; see ``VideoTokenizer``. The defaults are those of Waypoint-1-Small.

    Args:
        image_size: (H, W) in pixels.
        square: side of the square to which frames are resized.
        colors: channels of a frame in the networks; those beyond red, green and blue are 0, and not shown.
        channels: of the latents.
        encoder_widths, decoder_widths: channels at each resolution, from the square's on.
        encoder_blocks, decoder_blocks: blocks at each resolution but the last.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (360, 640),
        square: int = 512,
        colors: int = 3,
        channels: int = 16,
        encoder_widths: tuple[int, ...] = (256, 512, 1024, 2048, 2048),
        encoder_blocks: tuple[int, ...] = (4, 4, 4, 8),
        decoder_widths: tuple[int, ...] = (256, 512, 1024, 2048, 2048),
        decoder_blocks: tuple[int, ...] = (4, 4, 4, 8),
    ) -> None:
        super().__init__()
        stages = len(encoder_blocks)
        if not len(encoder_widths) == len(decoder_widths) == stages + 1 or len(decoder_blocks) != stages:
            raise ValueError(f"widths must be one more than {stages} numbers of blocks, in encoder and decoder")
        if square % 2**stages or colors < 3 or encoder_widths[-1] % channels or decoder_widths[-1] % channels:
            raise ValueError(
                f"square={square} must be a multiple of {2**stages}, colors={colors} 3 or more, and the last widths "
                f"multiples of channels={channels}"
            )
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid = (square // 2**stages, square // 2**stages)
        self.channels = channels
        self.square = square
        self.colors = colors
        self.encoder = _Encoder(colors, channels, tuple(encoder_widths), tuple(encoder_blocks))
        self.decoder = _Decoder(colors, channels, tuple(decoder_widths), tuple(decoder_blocks))

    def encode(self, video: Tensor) -> Tensor:
        """Encode: float [b, t, 3, H, W] in [-1, 1] -> [b, t, h, w, c]."""
        self.check_video(video)
        images = F.pad(video.flatten(0, 1).to(self.dtype), (0, 0, 0, 0, 0, self.colors - 3))
        latents = self.encoder(F.interpolate(images, (self.square, self.square), mode="bicubic"))
        return latents.movedim(1, -1).unflatten(0, video.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode: float [b, t, h, w, c] -> [b, t, 3, H, W]."""
        images = self.decoder(latents.flatten(0, 1).movedim(-1, 1).to(self.dtype))
        resized = F.interpolate(images, self.image_size, mode="bicubic")[:, :3]
        return resized.unflatten(0, latents.shape[:2])


class _Encoder(nn.Module):
    def __init__(self, colors: int, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = _Projection(colors, widths[0])
        stages = zip(pairwise(widths), blocks, strict=True)
        self.blocks = nn.ModuleList(_DownStage(a, b, count) for (a, b), count in stages)
        self.residuals = nn.ModuleList(_Projection(a, b // 4) for a, b in pairwise(widths))
        self.conv_out = _Projection(widths[-1], channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage, residual in zip(self.blocks, self.residuals, strict=True):
            x = stage(x) + F.pixel_unshuffle(residual(x), 2)
        out = self.conv_out(x)
        groups = x.shape[1] // out.shape[1]
        return out + x.unflatten(1, (groups, -1)).mean(dim=1) * groups**0.5


class _Decoder(nn.Module):
    def __init__(self, colors: int, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        stages = list(zip(pairwise(widths), blocks, strict=True))[::-1]
        self.conv_in = _Projection(channels, widths[-1])
        self.blocks = nn.ModuleList(_UpStage(b, a, count) for (a, b), count in stages)
        self.residuals = nn.ModuleList(_Projection(b, 4 * a) for (a, b), _ in stages)
        self.conv_out = _Projection(widths[0], colors)

    def forward(self, z: Tensor) -> Tensor:
        out = self.conv_in(z)
        copies = out.shape[1] // z.shape[1]
        x = out + z.repeat_interleave(copies, dim=1) * copies**-0.5
        for stage, residual in zip(self.blocks, self.residuals, strict=True):
            x = stage(x) + F.pixel_shuffle(residual(x), 2)
        return self.conv_out(F.silu(x))


class _DownStage(nn.Module):
    """Blocks, then half the height and width."""

    def __init__(self, width: int, outputs: int, count: int) -> None:
        super().__init__()
        self.down = _Projection(width, outputs, size=1)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.down(F.interpolate(x, scale_factor=0.5, mode="bicubic"))


class _UpStage(nn.Module):
    """Twice the height and width, then blocks."""

    def __init__(self, inputs: int, width: int, count: int) -> None:
        super().__init__()
        self.up = _Projection(inputs, width, size=1) if inputs != width else nn.Identity()
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.up(x), scale_factor=2.0, mode="bicubic")
        for block in self.blocks:
            x = block(x)
        return x


class _Projection(nn.Module):
    """A convolution: of one pixel without a bias, or of 3 x 3 with one."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=size > 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        groups = max(1, 2 * width // GROUP_CHANNELS)
        self.conv1 = nn.Conv2d(width, 2 * width, 1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(2 * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x)))))


def fold_weight_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the norms of weights (torch's parametrizations) into them."""
    ending = ".parametrizations.weight.original"
    folded = {}
    for name, value in weights.items():
        if name.endswith(f"{ending}1"):
            base = name.removesuffix(f"{ending}1")
            norm = torch.linalg.vector_norm(value, dim=tuple(range(1, value.ndim)), keepdim=True)
            if f"{base}{ending}0" in weights:
                folded[f"{base}.weight"] = weights[f"{base}{ending}0"] * value / norm
                continue
        elif name.endswith(f"{ending}0") and f"{name[:-1]}1" in weights:
            continue
        folded[name] = value
    return folded
