"""Random resized crops and flips of whole clips, on the device, a function of the clips' seeds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vwm.core.seeds import seeded_uniform


class RandomResizedCrop:
    """One crop a clip, the same in all its frames, resized to the clip's own size; and perhaps mirrored.

    Args:
        area: least and largest share of the picture that is kept.
        aspect: least and largest ratio of the crop's width to its height, relative to the picture's.
        flip: share of the clips that are mirrored. Leave it 0 where left and right matter.
    """

    def __init__(
        self, area: tuple[float, float] = (0.3, 1.0), aspect: tuple[float, float] = (0.75, 1.35), flip: float = 0.5
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1] or not 0 <= flip <= 1:
            raise ValueError(f"area={area} and flip={flip} must be shares, aspect={aspect} ratios, lower ones first")
        self.area, self.aspect, self.flip = area, aspect, flip

    def __call__(self, video: Tensor, seed: Tensor) -> Tensor:
        """float [b, t, c, H, W] -> the same shape; ``seed`` int64 [b] on the video's device."""
        share, ratio, x, y, coin = seeded_uniform(seed, 5).unbind(1)
        share = self.area[0] + share * (self.area[1] - self.area[0])
        low, high = (math.log(a) for a in self.aspect)
        ratio = torch.exp(low + ratio * (high - low))
        width, height = ((share * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
        # The crop's middle, in the picture's coordinates from -1 to 1.
        x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        width = torch.where(coin < self.flip, -width, width)
        zero = torch.zeros_like(x)
        turn = torch.stack((torch.stack((width, zero, x), -1), torch.stack((zero, height, y), -1)), dim=1)
        b, t, c, h, w = video.shape
        grid = F.affine_grid(turn.to(video.dtype), [b, c, h, w], align_corners=False)
        # All frames of a clip share a grid, so they go through as channels.
        cropped = F.grid_sample(video.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return cropped.unflatten(1, (t, c))
