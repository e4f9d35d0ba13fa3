"""What Waypoint remembers: in each layer the keys and values of some past frames, in slots that are used in turn.

A layer with stride d remembers every d-th frame, and as many of them as it has slots. A frame whose own slot holds an
older one no longer attends to that.

Legend: b batch, m slots, n tokens of a frame, h heads of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LayerMemory(NamedTuple):
    """Keys and values of remembered frames, each [b, h, m, n, d], and whether a slot holds any, bool [b, m]."""

    keys: Tensor
    values: Tensor
    written: Tensor

    @classmethod
    def empty(cls, batch: int, heads: int, slots: int, tokens: int, width: int, like: Tensor) -> LayerMemory:
        """Make a memory without frames, with the type and device of ``like``."""
        nothing = like.new_zeros(batch, heads, slots, tokens, width)
        return cls(nothing, nothing.clone(), torch.zeros(batch, slots, dtype=torch.bool, device=like.device))

    def attended(self, keys: Tensor, values: Tensor, frame: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a frame attends to: the remembered frames and itself.

        Args:
            keys, values: its own, [b, h, n, d].
            frame: int64 [b], its number.
            stride: of the layer.

        Returns:
            Keys and values [b, h, m n + n, d], and bool [b, 1, 1, m n + n], True where attended.
        """
        tokens = keys.shape[-2]
        old = self.written & ~self._own_slot(frame, stride)
        mask = torch.cat((old.repeat_interleave(tokens, dim=1), old.new_ones(len(old), tokens)), dim=1)
        past = (self.keys.flatten(2, 3), self.values.flatten(2, 3))
        return torch.cat((past[0], keys), dim=2), torch.cat((past[1], values), dim=2), mask[:, None, None]

    def remember(self, keys: Tensor, values: Tensor, frame: Tensor, stride: int) -> LayerMemory:
        """Return the memory after a frame; see ``attended``."""
        slot = self._own_slot(frame, stride)
        place = slot[:, None, :, None, None]
        return LayerMemory(
            torch.where(place, keys[:, :, None], self.keys),
            torch.where(place, values[:, :, None], self.values),
            self.written | slot,
        )

    def _own_slot(self, frame: Tensor, stride: int) -> Tensor:
        """bool [b, m]: the slot that a frame takes, if it is one of those that are remembered."""
        slots = self.written.shape[1]
        place = torch.div(frame, stride, rounding_mode="floor") % slots
        is_kept = frame % stride == 0
        return (torch.arange(slots, device=frame.device) == place[:, None]) & is_kept[:, None]
