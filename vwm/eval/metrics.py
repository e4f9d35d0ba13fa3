"""Image metrics: mean squared error, PSNR and SSIM.

Legend: n clips, t time, h w pixels. Images are uint8, errors are squared differences of levels 0..255.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_PIXEL_VALUE = 255.0
"""The largest level of a pixel."""


class MeanEstimate(NamedTuple):
    """A mean with its standard error and the number of values."""

    mean: float
    stderr: float
    n: int


def frame_mse(truth: Tensor, prediction: Tensor) -> Tensor:
    """Compute the mean squared error of every frame: uint8 [n, t, h, w, 3] each -> float64 [n, t]."""
    # Clip by clip, because signed integers take four times the memory of the pixels.
    pairs = zip(truth, prediction, strict=True)
    return torch.stack([(x.int() - y.int()).square().double().mean(dim=(1, 2, 3)) for x, y in pairs])


def psnr(error: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB of mean squared errors, of any shape; infinite where the error is 0.

    For the PSNR of a SET, average the errors first: ``psnr(error.mean())``. The mean of single PSNRs is infinite if
    one image is exact, which is common in video: in a clip without motion, a copy of the last frame is exact.
    """
    return 10 * torch.log10(MAX_PIXEL_VALUE**2 / error)


def set_psnr(truth: Tensor, prediction: Tensor) -> Tensor:
    """Compute the PSNR of the set by time step, in dB: uint8 [n, t, h, w, 3] each -> float64 [t]."""
    return psnr(frame_mse(truth, prediction).mean(dim=0))


def ssim(truth: Tensor, prediction: Tensor) -> Tensor:
    """Compute the mean structural similarity by time step: uint8 [n, t, h, w, 3] each -> float64 [t]; 1 if equal.

    Raises:
        ValueError: frames smaller than SSIM's window.
    """
    if min(truth.shape[2:4]) < 11:
        raise ValueError(f"SSIM requires frames of 11x11 pixels (its window) or more, got {list(truth.shape[2:4])}")
    return torch.stack([_mean_ssim(x, y) for x, y in zip(truth.unbind(1), prediction.unbind(1), strict=True)])


def _mean_ssim(truth: Tensor, prediction: Tensor) -> Tensor:
    """Compute the mean over images, uint8 [n, h, w, 3] each, in parts to limit memory."""
    parts = zip(_channels_first(truth).split(64), _channels_first(prediction).split(64), strict=True)
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds to import

    values = [structural_similarity_index_measure(y, x, data_range=MAX_PIXEL_VALUE, reduction="none") for x, y in parts]
    return torch.cat([torch.as_tensor(v).reshape(-1) for v in values]).double().mean()


def _channels_first(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).float()


def find_still_clips(frames: Tensor, context: int) -> Tensor:
    """Find clips in which nothing changes after the context: uint8 [n, t, h, w, 3] -> bool [n].

    Copying the last frame is exact there, so they do not distinguish models and are reported separately.
    """
    return (frames[:, context - 1 : context] == frames[:, context:]).flatten(1).all(dim=1)


def estimate_mean(values: Tensor) -> MeanEstimate:
    """Compute mean and standard error of the finite values of float [n]; NaN where there are too few (1, or 2)."""
    finite = values[values.isfinite()].double()
    n = len(finite)
    mean = float(finite.mean()) if n else float("nan")
    stderr = float(finite.std() / n**0.5) if n > 1 else float("nan")
    return MeanEstimate(mean, stderr, n)
