"""Pixels and patches. Legend: b batch, t time, h w a grid of patches, p patch side, c channels, n = h*w tokens."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify(video: Tensor, patch: int) -> Tensor:
    """[b, t, c, h*p, w*p] -> [b, t, h*w, p*p*c]."""
    return rearrange(video, "b t c (h p) (w q) -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Tensor, patch: int, height: int) -> Tensor:
    """[b, t, h*w, p*p*c] -> [b, t, c, h*p, w*p]; ``height`` is h, in patches."""
    return rearrange(patches, "b t (h w) (p q c) -> b t c (h p) (w q)", h=height, p=patch, q=patch)


def patch_grid(image_size: tuple[int, int], patch: int, name: str = "image_size") -> tuple[int, int]:
    """Number of patches per column and per row. Raises ValueError if ``patch`` does not divide the size."""
    height, width = image_size
    if height % patch or width % patch:
        raise ValueError(f"patch_size={patch} must divide {name}={height}x{width}")
    return height // patch, width // patch
