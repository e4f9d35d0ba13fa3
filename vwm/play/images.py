"""Pictures in and out: frames become PNG files, uploaded files become frames of the world's size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
"""A small file can unfold to gigabytes; the size is read from its header and refused before any pixel is decoded."""


def encode_png(frame: NDArray[np.uint8]) -> bytes:
    """Encode a frame, uint8 [h, w, 3], as PNG: lossless, since every pixel of a small world is drawn large."""
    buffer = io.BytesIO()
    # the lowest level: the link is local and time counts for more than bytes
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_upload(data: bytes, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an uploaded picture, cut to the world's shape around its centre and resized.

    Args:
        data: the bytes of a file.
        image_size: (height, width) of the world.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: it is no picture, is damaged, or unfolds to too many pixels.
    """
    height, width = image_size
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"the picture is {image.width} x {image.height} pixels; up to {MAX_PIXELS // 10**6} million "
                    "are taken. Make it smaller first."
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"the picture unfolds to more than {MAX_PIXELS // 10**6} million pixels. Make it smaller first."
        ) from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"this is not a picture that can be read; {', '.join(IMAGE_FORMATS)} files are taken"
        ) from error
    cut_width = min(upright.width, max(1, round(upright.height * width / height)))
    cut_height = min(upright.height, max(1, round(upright.width * height / width)))
    left, top = (upright.width - cut_width) // 2, (upright.height - cut_height) // 2
    # cut first: the filter of a resize with a box would reach over the cut and mix in what lies outside
    cut = upright.crop((left, top, left + cut_width, top + cut_height))
    return np.array(cut.resize((width, height), Image.Resampling.LANCZOS))
