"""The laws of the cosine basis."""

import pytest
import torch

from vwm.nn.cosine_transform import video_dct_basis


@pytest.mark.parametrize(("frames", "side"), [(1, 4), (4, 2)])
def test_the_whole_basis_is_orthonormal_and_spends_the_variance_of_pixels(frames, side):
    size = frames * side * side * 3
    basis, deviation = video_dct_basis(frames, side, size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))
    # Deviation a half a pixel.
    assert deviation.square().mean().item() == pytest.approx(0.25)
    assert deviation.diff().max() <= 0


def test_the_first_wave_is_brightness():
    basis, _ = video_dct_basis(2, 4, 1)
    torch.testing.assert_close(basis, torch.full((1, 96), 96**-0.5, dtype=torch.float64))
