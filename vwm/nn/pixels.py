"""Pixels and patches. Legend: b batch, t time, h w a grid of patches, p patch side, c channels, n = h*w tokens."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def frames_to_float(frames: Tensor) -> Tensor:
    """uint8 [b, t, H, W, c] at rest -> float32 [b, t, c, H, W] in [-1, 1], the models' form."""
    return rearrange(frames, "b t h w c -> b t c h w").float() / 127.5 - 1


def video_to_uint8(video: Tensor) -> Tensor:
    """float [b, t, c, H, W] -> uint8 [b, t, H, W, c], rounded and clamped."""
    return rearrange(((video.float() + 1) * 127.5).round().clamp(0, 255).byte(), "b t c h w -> b t h w c")


def patchify(video: Tensor, patch: int) -> Tensor:
    """[b, t, c, h*p, w*p] -> [b, t, h*w, p*p*c]."""
    return rearrange(video, "b t c (h p) (w q) -> b t (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Tensor, patch: int, height: int) -> Tensor:
    """[b, t, h*w, p*p*c] -> [b, t, c, h*p, w*p]; ``height`` is h, in patches."""
    return rearrange(patches, "b t (h w) (p q c) -> b t c (h p) (w q)", h=height, p=patch, q=patch)


def patch_grid(image_size: tuple[int, int], patch: int, name: str = "image_size") -> tuple[int, int]:
    """Patches in a column and a row. Raises ValueError where the patch does not divide what ``name`` says."""
    height, width = image_size
    if height % patch or width % patch:
        raise ValueError(f"patch_size={patch} must divide {name}={height}x{width}")
    return height // patch, width // patch
