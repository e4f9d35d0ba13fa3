"""Random resized crops and flips of clips on the device, as a function of the seeds of the clips."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vwm.core.seeds import seeded_uniform


class RandomResizedCrop:
    """Crop each clip, with the same crop for all frames, resize it to the original size, and randomly flip it.

    Args:
        scale: range of the share of the frame that is kept.
        aspect_ratio: range of the crop's ratio of width to height, relative to that of the frame.
        flip_probability: probability of a horizontal flip; 0 if left and right matter.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.3, 1.0),
        aspect_ratio: tuple[float, float] = (0.75, 1.35),
        flip_probability: float = 0.5,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale={scale} must be a range of shares within (0, 1]")
        if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
            raise ValueError(f"aspect_ratio={aspect_ratio} must be a range of positive ratios")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability={flip_probability} must be between 0 and 1")
        self.scale = scale
        self.aspect_ratio = aspect_ratio
        self.flip_probability = flip_probability

    def __call__(self, video: Tensor, seed: Tensor) -> Tensor:
        """Augment float [b, t, c, H, W], with ``seed`` int64 [b] on the device of the video."""
        area, ratio, x, y, flip = seeded_uniform(seed, 5).unbind(1)
        area = self.scale[0] + area * (self.scale[1] - self.scale[0])
        low, high = (math.log(ratio) for ratio in self.aspect_ratio)
        ratio = torch.exp(low + ratio * (high - low))
        width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
        # Center of the crop, in coordinates of the frame from -1 to 1.
        x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        width = torch.where(flip < self.flip_probability, -width, width)
        zero = torch.zeros_like(x)
        theta = torch.stack((torch.stack((width, zero, x), -1), torch.stack((zero, height, y), -1)), dim=1)
        b, t, c, h, w = video.shape
        grid = F.affine_grid(theta.to(video.dtype), [b, c, h, w], align_corners=False)
        # All frames of a clip share a grid, so they are processed as channels.
        cropped = F.grid_sample(video.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return cropped.unflatten(1, (t, c))
