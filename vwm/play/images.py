"""Conversion of frames to PNG, and of uploaded images to frames of the world's size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 16_000_000
"""Largest number of pixels of an upload. A small file may decode to gigabytes, so its header is checked first."""


def encode_png(frame: NDArray[np.uint8]) -> bytes:
    """Encode a frame, uint8 [h, w, 3], as PNG: lossless, because pages enlarge the pixels of small worlds."""
    buffer = io.BytesIO()
    # the lowest level: the connection is mostly local, so time matters more than bytes
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_upload(data: bytes, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an uploaded image, crop it around its center to the world's aspect ratio, and resize it.

    Args:
        data: the bytes of a file.
        image_size: (height, width) of the world.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: the file is not an image, is damaged, or has too many pixels.
    """
    height, width = image_size
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"the image has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS // 10**6} million. "
                    "Make it smaller first."
                )
            image.draft("RGB", (4 * max(width, height),) * 2)  # JPEG decodes to a smaller picture directly
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"the image has more than {MAX_PIXELS // 10**6} million pixels. Make it smaller first."
        ) from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"this file is not an image in a supported format ({', '.join(IMAGE_FORMATS)})") from error
    cut_width = min(upright.width, max(1, round(upright.height * width / height)))
    cut_height = min(upright.height, max(1, round(upright.width * height / width)))
    left, top = (upright.width - cut_width) // 2, (upright.height - cut_height) // 2
    # Crop before resizing: the filter of a resize with a box would use pixels outside the box.
    cut = upright.crop((left, top, left + cut_width, top + cut_height))
    return np.array(cut.resize((width, height), Image.Resampling.LANCZOS))
