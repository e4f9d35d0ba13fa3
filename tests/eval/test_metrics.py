"""Image metrics have exact values on constructed images."""

from __future__ import annotations

import math

import pytest
import torch

from vwm.eval.metrics import estimate_mean, find_still_clips, frame_mse, psnr, set_psnr, ssim


def constant_frames(*levels: int, size: int = 16) -> torch.Tensor:
    """One clip of constant frames, uint8 [1, t, size, size, 3]."""
    return torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, size, size, 3)


def test_frame_mse_is_exact_for_positive_and_negative_errors() -> None:
    error = frame_mse(constant_frames(0, 10, 255), constant_frames(255, 7, 255))
    assert error.tolist() == [[255.0**2, 9.0, 0.0]]


@pytest.mark.parametrize(("error", "decibel"), [(255.0**2, 0.0), (255.0**2 / 100, 20.0), (1.0, 48.1308036)])
def test_psnr_of_a_known_error(error: float, decibel: float) -> None:
    assert float(psnr(torch.tensor(error, dtype=torch.float64))) == pytest.approx(decibel, abs=1e-6)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert math.isinf(psnr(torch.zeros(())))


def test_set_psnr_averages_errors_before_the_logarithm() -> None:
    truth = torch.cat((constant_frames(100), constant_frames(100)))
    # One exact clip must not make the PSNR of the set infinite.
    prediction = torch.cat((constant_frames(100), constant_frames(110)))
    assert set_psnr(truth, prediction).tolist() == pytest.approx([10 * math.log10(255**2 / 50)])


def test_ssim_is_one_for_equal_images_and_lower_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 255, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=generator)
    noise = torch.randint(0, 255, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=generator)
    assert ssim(truth, truth).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert float(ssim(truth, noise).max()) < 0.3


def test_ssim_rejects_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(constant_frames(0, size=8), constant_frames(0, size=8))


def test_still_clips_are_still_after_the_context() -> None:
    clips = torch.cat((constant_frames(1, 2, 2, 2), constant_frames(2, 2, 2, 3)))
    assert find_still_clips(clips, context=2).tolist() == [True, False]
    assert find_still_clips(clips, context=1).tolist() == [False, False]


def test_estimates_ignore_non_finite_values() -> None:
    mean, stderr, n = estimate_mean(torch.tensor([1.0, 3.0, float("inf"), float("nan")]))
    assert (mean, n) == (2.0, 2)
    assert stderr == pytest.approx(1.0)
    assert math.isnan(estimate_mean(torch.tensor([float("inf")])).mean)
