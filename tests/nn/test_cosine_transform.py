"""Invariants of the cosine basis."""

import pytest
import torch

from vwm.nn.cosine_transform import video_dct_basis


@pytest.mark.parametrize(("frames", "side"), [(1, 4), (4, 2)])
def test_the_full_basis_is_orthonormal_and_keeps_the_variance_of_pixels(frames, side):
    size = frames * side * side * 3
    basis, std = video_dct_basis(frames, side, size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))
    # The standard deviation of a pixel is 0.5.
    assert std.square().mean().item() == pytest.approx(0.25)
    assert std.diff().max() <= 0


def test_the_first_basis_vector_is_the_mean_brightness():
    basis, _ = video_dct_basis(2, 4, 1)
    torch.testing.assert_close(basis, torch.full((1, 96), 96**-0.5, dtype=torch.float64))
