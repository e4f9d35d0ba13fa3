"""Crops: one a clip, a function of its seed, and of the part of the picture that they say."""

import pytest
import torch

from vwm.models.vjepa.augmentation import RandomResizedCrop


def ramp() -> torch.Tensor:
    """Frames whose red is the column and whose green is the row, both from -1 to 1: [4, 3, 3, 32, 32]."""
    axis = (torch.arange(32) + 0.5) / 16 - 1
    frame = torch.stack((axis.expand(32, 32), axis[:, None].expand(32, 32), torch.zeros(32, 32)))
    return frame.expand(4, 3, 3, 32, 32)


def test_the_whole_picture_is_left_as_it_is():
    out = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=0)(ramp(), torch.arange(4))
    torch.testing.assert_close(out, ramp())


def test_a_mirrored_clip_is_mirrored_in_all_its_frames():
    out = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=1)(ramp(), torch.arange(4))
    torch.testing.assert_close(out, ramp().flip(-1))


def test_a_crop_shows_the_share_that_was_asked_within_the_picture():
    crop = RandomResizedCrop((0.25, 0.25), (1.0, 1.0), flip_probability=0)
    out = crop(ramp(), torch.tensor([1, 2, 3, 4]))
    wide = out[:, :, 0, :, -1] - out[:, :, 0, :, 0]  # 31/32 of half the picture's width
    torch.testing.assert_close(wide, torch.full_like(wide, 31 / 32), rtol=0, atol=1e-4)
    assert out.abs().max() <= 1 and torch.equal(out[:, 0], out[:, 2])
    assert len({round(float(v), 3) for v in out[:, 0, 0, 0, 0]}) == 4  # each clip at its own place


def test_a_clip_is_cropped_as_it_would_be_alone():
    crop, video = RandomResizedCrop(), ramp()
    together = crop(video, torch.arange(4) * 31)
    torch.testing.assert_close(together[2:3], crop(video[2:3], torch.tensor([62])))


def test_shares_out_of_range_are_named():
    with pytest.raises(ValueError, match="scale"):
        RandomResizedCrop(scale=(0.0, 1.0))
