"""Encoded pictures (PNG, JPEG, WebP, ...) as arrays, one at a time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vwm.core.limits import MAX_FRAME_SIDE


def decode_picture(content: bytes | Path, name: str) -> NDArray[np.uint8]:
    """Return a picture, uint8 [H, W, 3], upright, and black where it is transparent.

    Args:
        content: its bytes, or its file.
        name: for errors.

    Raises:
        ValueError: it cannot be decoded, or its numbers are no levels of 8 bits (depth maps).
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            _check_size(image, name)
            return to_pixels(ImageOps.exif_transpose(image), name)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}: cannot be decoded as a picture ({text})") from error


def to_pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return an opened picture as uint8 [H, W, 3], black where it is transparent: what lies there is any color.

    Raises:
        ValueError: its numbers are no levels of 8 bits, or it is larger than any frame.
    """
    _check_size(image, name)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name}: has levels of more than 8 bits (mode {image.mode}), as depth maps have")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _check_size(image: Image.Image, name: str) -> None:
    if max(image.size) > MAX_FRAME_SIDE:
        raise ValueError(f"{name}: is {image.size[0]}x{image.size[1]}, more than {MAX_FRAME_SIDE} pixels on a side")


class EncodedPictures:
    """Pictures of one camera as an array of uint8 [T, H, W, 3], each decoded when it is asked for.

    Args:
        contents: the bytes of each.
        name: for errors.

    Raises:
        ValueError: the first cannot be decoded.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, contents: Sequence[bytes], name: str) -> None:
        self.contents = contents
        self.name = name
        first = decode_picture(contents[0], f"{name} 0").shape if contents else (0, 0, 3)
        self.shape = (len(contents), *first)

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        numbers = range(*part.indices(len(self)))
        pictures = [decode_picture(self.contents[i], f"{self.name} {i}") for i in numbers]
        for i, picture in zip(numbers, pictures, strict=True):
            if picture.shape != self.shape[1:]:
                sizes = [f"{width}x{height}" for height, width, _ in (picture.shape, self.shape[1:])]
                raise ValueError(f"{self.name} {i}: is {sizes[0]}, the first one {sizes[1]}")
        return np.stack(pictures)
