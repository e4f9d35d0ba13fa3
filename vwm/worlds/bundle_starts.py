"""Starting contexts of a bundle on disk: PNG strips of frames, or one tensor where observations are vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vwm.core.bundle_folder import BundleError, check_no_outside_link
from vwm.core.spaces import ObservationSpace

STARTS_FOLDER = "starts"
VECTOR_STARTS_FILE = "vectors.safetensors"
MAX_STARTS = 1024
MAX_START_PIXELS = 2**26
"""Limits of the starting contexts of a bundle, and of the pixels of one of them."""


def save_starts(starts: Tensor, bundle: Path) -> None:
    """Write uint8 [n, t, h, w, 3] as n PNG strips with frames side by side, float32 [n, t, k] as one tensor."""
    folder = bundle / STARTS_FOLDER
    folder.mkdir()
    if starts.ndim == 3:
        save_file({"starts": starts.cpu().contiguous()}, folder / VECTOR_STARTS_FILE)
        return
    for i, clip in enumerate(starts.cpu().numpy()):
        Image.fromarray(np.concatenate(list(clip), axis=1)).save(folder / f"{i:03d}.png", optimize=True)


def load_starts(bundle: Path, frames: int, space: ObservationSpace) -> Tensor | None:
    """Read the starting contexts of a bundle; None where it has none.

    Args:
        bundle: its folder.
        frames: of each context.
        space: of a frame.

    Returns:
        uint8 [n, t, h, w, 3] or float32 [n, t, k].

    Raises:
        BundleError: a file is broken, too large, a link out of the bundle or no context of this simulator.
    """
    folder = bundle / STARTS_FOLDER
    vectors = folder / VECTOR_STARTS_FILE
    for path in (folder, vectors):
        check_no_outside_link(path, bundle)
    if vectors.is_file():
        return _read_vectors(vectors, space)
    files = sorted(folder.glob("*.png"))
    if not files:
        return None
    if len(files) > MAX_STARTS:
        raise BundleError(f"{folder}: {len(files)} starting contexts are too many, at most {MAX_STARTS}")
    strips = [_read_picture(file, bundle) for file in files]
    if not space.is_image:
        raise BundleError(f"{files[0]}: is a picture, and this world starts from {space}")
    height, width = space.image_size
    for file, strip in zip(files, strips, strict=True):
        if strip.shape[:2] != (height, width * frames):
            raise BundleError(f"{file}: {strip.shape[1]}x{strip.shape[0]} pixels, and {frames} frames of this world "
                              f"are {width * frames}x{height}")  # fmt: skip
    return torch.from_numpy(np.stack([np.stack(np.split(strip, frames, axis=1)) for strip in strips]))


def _read_vectors(file: Path, space: ObservationSpace) -> Tensor:
    """Read contexts of vectors, float32 [n, t, k]."""
    if not space.is_vector:
        raise BundleError(f"{file}: holds vectors, and this world starts from {space}")
    try:
        starts = load_file(file)["starts"]
    except (KeyError, SafetensorError, OSError) as error:
        raise BundleError(f"{file}: not contexts of vectors ({error!r})") from error
    is_context = starts.ndim == 3 and starts.numel() and starts.shape[2:] == space.shape and starts.dtype == space.dtype
    if not is_context or not starts.isfinite().all():
        raise BundleError(
            f"{file}: starts must be finite {space} with contexts and frames first, "
            f"got {str(starts.dtype).removeprefix('torch.')} {list(starts.shape)}"
        )
    return starts


def _read_picture(file: Path, bundle: Path) -> NDArray[np.uint8]:
    """Read a PNG, uint8 [h, w, 3]."""
    check_no_outside_link(file, bundle)
    if not file.is_file():
        raise BundleError(f"{file}: is no file")
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > MAX_START_PIXELS:
                raise BundleError(
                    f"{file}: {image.width}x{image.height} pixels are too many, at most {MAX_START_PIXELS}"
                )
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{file}: cannot be read as a PNG ({error})") from error
