"""A sliding window of past latents and actions, for simulators that recompute their window in every step.

Legend: b batch, s frames of the window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FrameWindow(NamedTuple):
    """The last frames of simulations, the latest last.

    Attributes:
        latents: float [b, s, ...].
        actions: float [b, s, a], that led to the frames.
        known: bool [b, s], False for the first entries where there are no such frames yet.
    """

    latents: Tensor
    actions: Tensor
    known: Tensor

    @classmethod
    def start(cls, latents: Tensor, actions: Tensor, size: int) -> FrameWindow:
        """Make a window of s = ``size`` frames of the last ones given, latents [b, t, ...] and actions [b, t, a]."""
        latents, actions = latents[:, -size:], actions[:, -size:]
        missing = size - latents.shape[1]
        known = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        return cls(*(_pad_front(part, missing) for part in (latents, actions, known)))

    def append(self, latent: Tensor, action: Tensor) -> FrameWindow:
        """Return the window with one more frame, latent [b, ...] and action [b, a], and without its first."""
        added = (latent, action, torch.ones_like(self.known[:, 0]))
        return FrameWindow(*(torch.cat((old[:, 1:], new[:, None]), 1) for old, new in zip(self, added, strict=True)))

    @property
    def known_with_next(self) -> Tensor:
        """Which frames are known when the next one follows: bool [b, s + 1]."""
        return torch.cat((self.known, torch.ones_like(self.known[:, :1])), dim=1)


def known_causal_mask(frames: int, total: int, known: Tensor | None, device: torch.device) -> Tensor:
    """Return which frames attend to which: bool [b, 1, 1, t, s + t], True where attended; b is 1 if all are known.

    Args:
        frames: t, the last of all.
        total: s + t.
        known: bool [b, s + t]; a frame that is not known is attended to by itself alone. None where all are.
        device: of the mask.
    """
    causal = torch.ones(frames, total, dtype=torch.bool, device=device).tril(total - frames)
    if known is None:
        return causal[None, None, None]
    itself = causal.triu(total - frames)
    return ((causal & known[:, None]) | itself)[:, None, None]


def _pad_front(x: Tensor, frames: int) -> Tensor:
    """[b, t, ...] -> [b, frames + t, ...], with zeros before."""
    return torch.cat((x.new_zeros(len(x), frames, *x.shape[2:]), x), dim=1)
