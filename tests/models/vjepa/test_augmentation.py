"""Random crops: one per clip, a function of its seed, with the requested scale."""

import pytest
import torch

from vwm.models.vjepa.augmentation import RandomResizedCrop


def make_ramp() -> torch.Tensor:
    """Frames whose red is the column and whose green is the row, both from -1 to 1: [4, 3, 3, 32, 32]."""
    axis = (torch.arange(32) + 0.5) / 16 - 1
    frame = torch.stack((axis.expand(32, 32), axis[:, None].expand(32, 32), torch.zeros(32, 32)))
    return frame.expand(4, 3, 3, 32, 32)


def test_a_crop_of_the_full_image_changes_nothing():
    output = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=0)(make_ramp(), torch.arange(4))
    torch.testing.assert_close(output, make_ramp())


def test_all_frames_of_a_clip_are_flipped_together():
    output = RandomResizedCrop((1.0, 1.0), (1.0, 1.0), flip_probability=1)(make_ramp(), torch.arange(4))
    torch.testing.assert_close(output, make_ramp().flip(-1))


def test_a_crop_has_the_requested_scale_and_lies_within_the_image():
    crop = RandomResizedCrop((0.25, 0.25), (1.0, 1.0), flip_probability=0)
    output = crop(make_ramp(), torch.tensor([1, 2, 3, 4]))
    width = output[:, :, 0, :, -1] - output[:, :, 0, :, 0]  # 31/32 of half the image's width
    torch.testing.assert_close(width, torch.full_like(width, 31 / 32), rtol=0, atol=1e-4)
    assert output.abs().max() <= 1 and torch.equal(output[:, 0], output[:, 2])
    assert len({round(float(v), 3) for v in output[:, 0, 0, 0, 0]}) == 4  # each clip has its own crop


def test_crops_do_not_depend_on_the_batch():
    crop, video = RandomResizedCrop(), make_ramp()
    batched = crop(video, torch.arange(4) * 31)
    torch.testing.assert_close(batched[2:3], crop(video[2:3], torch.tensor([62])))


def test_rejects_scales_out_of_range():
    with pytest.raises(ValueError, match="scale"):
        RandomResizedCrop(scale=(0.0, 1.0))
