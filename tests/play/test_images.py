"""The formats in which pages get frames."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from vwm.play.images import IMAGE_FORMATS, ImageFormatName, choose_format, encode_frame

ALL = ("webp", "jpeg", "png")


@pytest.mark.parametrize(
    ("wanted", "decodable", "image_size", "chosen"),
    [
        ("auto", ALL, (64, 64), "webp"),
        ("auto", ALL, (128, 128), "webp"),
        ("auto", ALL, (128, 129), "jpeg"),
        ("auto", ("jpeg", "png"), (64, 64), "png"),  # as exact as webp
        ("auto", ("avif",), (360, 640), "png"),
        ("png", ALL, (360, 640), "png"),
        ("webp", ALL, (360, 640), "webp"),
        ("jpeg", ALL, (64, 64), "jpeg"),
    ],
)
def test_small_frames_are_exact_and_large_ones_are_small(
    wanted: ImageFormatName, decodable: Sequence[str], image_size: tuple[int, int], chosen: str
) -> None:
    assert choose_format(wanted, decodable, image_size).name == chosen


@pytest.mark.parametrize("name", ALL)
def test_encoded_frames_decode_to_the_same_pixels(name: str) -> None:
    rows, columns = np.mgrid[:48, :40]
    frame = np.stack((5 * rows, 6 * columns, 255 - 5 * rows), axis=-1).astype(np.uint8)
    frame[10:20, 10:20] = (255, 255, 255)
    with Image.open(io.BytesIO(encode_frame(frame, IMAGE_FORMATS[name]))) as image:
        assert image.get_format_mimetype() == IMAGE_FORMATS[name].media_type
        error = np.abs(np.asarray(image.convert("RGB")).astype(int) - frame)
    assert error.max() <= (20 if name == "jpeg" else 0)
