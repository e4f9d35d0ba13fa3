"""Frames as they are stored (uint8) and as networks read them (float).

Legend: b batch, t time, H W pixels, c channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def frames_to_float(frames: Tensor) -> Tensor:
    """Convert uint8 [b, t, H, W, c] to float [b, t, c, H, W] in [-1, 1], float32 unless the default is float64."""
    dtype = torch.promote_types(torch.float32, torch.get_default_dtype())
    return rearrange(frames, "b t h w c -> b t c h w").to(dtype) / 127.5 - 1


def video_to_uint8(video: Tensor) -> Tensor:
    """Convert float [b, t, c, H, W] in [-1, 1] to uint8 [b, t, H, W, c], rounded and clamped."""
    return rearrange(((video.float() + 1) * 127.5).round().clamp(0, 255).byte(), "b t c h w -> b t h w c")
