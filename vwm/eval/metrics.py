"""Numbers from pictures: errors, PSNR and SSIM.

Legend: n clips, t time, h w pixels. Pictures are uint8, errors are in squared levels of 0..255.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

MAX_PIXEL_VALUE = 255.0
"""The largest level of a pixel."""


class MeanEstimate(NamedTuple):
    """A mean with its standard error, and the number of values it is made of."""

    mean: float
    stderr: float
    n: int


def frame_mse(truth: Tensor, guess: Tensor) -> Tensor:
    """Mean squared error of every frame: uint8 [n, t, h, w, 3] twice -> float64 [n, t]."""
    # Clip by clip, because integers that can be subtracted take four times the memory of the pixels.
    pairs = zip(truth, guess, strict=True)
    return torch.stack([(x.int() - y.int()).square().double().mean(dim=(1, 2, 3)) for x, y in pairs])


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors, of any shape; infinite where the error is 0.

    For the PSNR of a SET, average the errors first: ``psnr(error.mean())``. The mean of single PSNRs is infinite as
    soon as one picture is exact, and in video that is common: in a clip in which nothing moves, a copy of the last
    frame is exact.
    """
    return 10 * torch.log10(MAX_PIXEL_VALUE**2 / error)


def set_psnr(truth: Tensor, guess: Tensor) -> Tensor:
    """PSNR of the set by time step, in dB: uint8 [n, t, h, w, 3] twice -> float64 [t]."""
    return psnr(frame_mse(truth, guess).mean(dim=0))


def ssim(truth: Tensor, guess: Tensor) -> Tensor:
    """Mean structural similarity by time step: uint8 [n, t, h, w, 3] twice -> float64 [t]; 1 where all is equal.

    Raises:
        ValueError: pictures smaller than SSIM's window.
    """
    if min(truth.shape[2:4]) < 11:
        raise ValueError(f"SSIM looks through a window of 11x11 pixels, the frames have {list(truth.shape[2:4])}")
    return torch.stack([_mean_ssim(x, y) for x, y in zip(truth.unbind(1), guess.unbind(1), strict=True)])


def _mean_ssim(truth: Tensor, guess: Tensor) -> Tensor:
    """The mean over a set of pictures, uint8 [n, h, w, 3] twice; some at a time, to bound the memory."""
    parts = zip(_channels_first(truth).split(64), _channels_first(guess).split(64), strict=True)
    values = [structural_similarity_index_measure(y, x, data_range=MAX_PIXEL_VALUE, reduction="none") for x, y in parts]
    return torch.cat([torch.as_tensor(v).reshape(-1) for v in values]).double().mean()


def _channels_first(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).float()


def find_still_clips(frames: Tensor, context: int) -> Tensor:
    """Clips in which nothing changes after the context: uint8 [n, t, h, w, 3] -> bool [n].

    Copying the last frame is exact there, so they say nothing of a model and are to be reported apart.
    """
    return (frames[:, context - 1 : context] == frames[:, context:]).flatten(1).all(dim=1)


def estimate_mean(values: Tensor) -> MeanEstimate:
    """Mean and standard error of the finite ones among float [n]; NaN where there are too few (1, or 2)."""
    finite = values[values.isfinite()].double()
    n = len(finite)
    mean = float(finite.mean()) if n else float("nan")
    stderr = float(finite.std() / n**0.5) if n > 1 else float("nan")
    return MeanEstimate(mean, stderr, n)
