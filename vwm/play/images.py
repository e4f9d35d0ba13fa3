"""Conversion of frames to images that browsers show, and of uploaded images to frames of the world's size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 16_000_000
"""Largest number of pixels of an upload. A small file may decode to gigabytes, so its header is checked first."""
LOSSLESS_PIXELS = 128 * 128
"""Frames of at most as many pixels are sent without loss by default.

Measured with Pillow 13 on the frames of the four worlds that come with vwm (64 x 64), in bytes and milliseconds of CPU
a frame: PNG 3,000 to 6,500 and 0.22 to 0.31; lossless WebP 2,500 to 5,200 and 0.17 to 0.23; JPEG 2,600 to 3,200 and
0.07 to 0.10, with visible errors (42 dB) where each pixel is shown as a large square. At 640 x 360 it matters: PNG
71,000 and 12; lossless WebP 59,000 and 10; JPEG 32,000 and 0.9.
"""

ImageFormatName = Literal["auto", "webp", "jpeg", "png"]


class ImageFormat(NamedTuple):
    """How frames are encoded.

    Attributes:
        name: by which pages say that they decode it.
        media_type: of the files.
        options: of Pillow's ``save``.
    """

    name: str
    media_type: str
    options: Mapping[str, Any]


IMAGE_FORMATS = {
    # Without loss; the greater efforts take 3 to 20 times as long for 5 to 30% fewer bytes.
    "webp": ImageFormat("webp", "image/webp", {"format": "WEBP", "lossless": True, "method": 0, "quality": 0}),
    # Colors in full resolution: edges of pixel art would get fringes.
    "jpeg": ImageFormat("jpeg", "image/jpeg", {"format": "JPEG", "quality": 95, "subsampling": 0}),
    # The lowest level: the connection is mostly local, so time matters more than bytes.
    "png": ImageFormat("png", "image/png", {"format": "PNG", "compress_level": 1}),
}


def choose_format(wanted: ImageFormatName, decodable: Sequence[str], image_size: tuple[int, int]) -> ImageFormat:
    """Return the format in which a page gets frames.

    Args:
        wanted: the format to use where the page decodes it; ``auto`` takes lossless WebP for small frames
            (``LOSSLESS_PIXELS``) and JPEG for larger ones.
        decodable: names of the formats that the page decodes; every page decodes PNG.
        image_size: (height, width) of the frames.
    """
    if wanted == "auto":
        wanted = "webp" if image_size[0] * image_size[1] <= LOSSLESS_PIXELS else "jpeg"
    return IMAGE_FORMATS[wanted if wanted in decodable else "png"]


def encode_frame(frame: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """Encode a frame, uint8 [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, **image_format.options)
    return buffer.getvalue()


def encode_png(frame: NDArray[np.uint8]) -> bytes:
    """Encode a frame, uint8 [h, w, 3], as PNG: without loss, for pictures that are sent once."""
    return encode_frame(frame, IMAGE_FORMATS["png"])


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
        with Image.open(io.BytesIO(data), formats=UPLOAD_FORMATS) as image:
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
        raise ValueError(f"this file is not an image in a supported format ({', '.join(UPLOAD_FORMATS)})") from error
    cut_width = min(upright.width, max(1, round(upright.height * width / height)))
    cut_height = min(upright.height, max(1, round(upright.width * height / width)))
    left, top = (upright.width - cut_width) // 2, (upright.height - cut_height) // 2
    # Crop before resizing: the filter of a resize with a box would use pixels outside the box.
    cut = upright.crop((left, top, left + cut_width, top + cut_height))
    return np.array(cut.resize((width, height), Image.Resampling.LANCZOS))
