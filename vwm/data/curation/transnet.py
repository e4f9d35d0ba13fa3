"""TransNet V2 (Souček and Lokoč, arXiv 2008.04838): a network that sees the transitions between shots.

Modules have the names of the weights that the authors publish for PyTorch (``transnetv2-pytorch-weights.pth``).

Legend: t time, c channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FRAME_SIZE = (27, 48)
"""Height and width of the frames that the network sees, in pixels."""
WIDTHS = (16, 32, 64)
"""Channels of each dilation in the three stages."""
DILATIONS = (1, 2, 4, 8)
REACH = 50
"""Frames before and after a frame that it is compared with."""
COLORS = 512
"""Bins of a color histogram, 8 of each channel."""


class TransNetV2(nn.Module):
    """Tell which frames of a video lie at a transition: uint8 [t, 27, 48, 3] -> probabilities, float [t]."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *(width * len(DILATIONS) for width in WIDTHS[:-1]))
        self.SDDCNN = nn.ModuleList([_Stage(c, width) for c, width in zip(inputs, WIDTHS, strict=True)])
        self.frame_sim_layer = _FeatureSimilarity(sum(WIDTHS) * len(DILATIONS), 128)
        self.color_hist_layer = _ColorSimilarity(128)
        self.fc1 = nn.Linear(WIDTHS[-1] * len(DILATIONS) * 3 * 6 + 2 * 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)  # all frames of a transition, from which the network learned; not used

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        x = frames.permute(3, 0, 1, 2)[None].float() / 255
        means = []
        for stage in self.SDDCNN:
            x = stage(x)
            means.append(x.mean(dim=(3, 4))[0].T)
        pixels = x[0].permute(1, 2, 3, 0).flatten(1)
        similarities = (self.color_hist_layer(frames), self.frame_sim_layer(torch.cat(means, dim=1)))
        hidden = functional.relu(self.fc1(torch.cat([*similarities, pixels], dim=1)))
        return self.cls_layer1(hidden)[:, 0].sigmoid()


class _Stage(nn.Module):
    """Two blocks with a residual connection, then half the height and width: [1, c, t, H, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_DilatedBlock(channels, width), _DilatedBlock(width * len(DILATIONS), width)])

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.DDCNN[0](x))
        return functional.avg_pool3d(functional.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class _DilatedBlock(nn.Module):
    """Convolutions over time with several dilations, next to each other."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        for dilation in DILATIONS:
            self.add_module(f"Conv3D_{dilation}", _SeparableConv(channels, width, dilation))
        self.bn = nn.BatchNorm3d(width * len(DILATIONS), eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([getattr(self, f"Conv3D_{dilation}")(x) for dilation in DILATIONS], dim=1))


class _SeparableConv(nn.Module):
    """A convolution over space, then one over time."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(2 * width, width, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False)
        self.layers = nn.ModuleList([space, time])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


class _FeatureSimilarity(nn.Module):
    """Compare the features of every frame, [t, c], with those of its neighbors."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, width)
        self.fc = nn.Linear(2 * REACH + 1, width)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.fc(_compare_with_neighbors(self.projection(features))))


class _ColorSimilarity(nn.Module):
    """Compare the color histogram of every frame, uint8 [t, H, W, 3], with those of its neighbors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, width)

    def forward(self, frames: Tensor) -> Tensor:
        red, green, blue = (frames.flatten(1, 2).long() >> 5).unbind(-1)
        bins = (red << 6) + (green << 3) + blue
        counts = torch.zeros(len(frames), COLORS, device=frames.device)
        counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=counts.dtype))
        return functional.relu(self.fc(_compare_with_neighbors(counts)))


def _compare_with_neighbors(vectors: Tensor) -> Tensor:
    """Return cosine similarities of [t, c] with the frames from ``REACH`` before to as many after, [t, 2 REACH + 1]."""
    unit = functional.normalize(vectors, dim=1)
    padded = functional.pad(unit @ unit.T, (REACH, REACH))  # row i, column j: frames i and j - REACH
    columns = torch.arange(len(unit), device=unit.device)[:, None] + torch.arange(2 * REACH + 1, device=unit.device)
    return padded.gather(1, columns)


def load_transnet(folder: Path) -> TransNetV2:
    """Load the published weights from a folder, without running code of theirs.

    Raises:
        ValueError: the folder has no file of weights, several, or one of another layout.
    """
    file = find_weights(folder)
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        network = TransNetV2()
        network.load_state_dict(weights)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file}: holds no weights of TransNet V2 as its authors publish them ({reason:.300})"
        ) from error
    return network.eval().requires_grad_(False)


def check_weights(folder: Path) -> str:
    """Return a hash of the weights in a folder. Raises ValueError as ``load_transnet`` does."""
    load_transnet(folder)
    with find_weights(folder).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def find_weights(folder: Path) -> Path:
    """Return the file of weights in a folder. Raises ValueError where there is none, or more than one."""
    found = sorted(path for path in folder.glob("*") if path.suffix in (".pth", ".pt", ".safetensors"))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: must hold one file of weights of TransNet V2 (.pth, .safetensors), found {listed}")
    return found[0]
