"""MuZero's model as a family: see ``WorldFamily``."""

from __future__ import annotations

from vwm.core.family import WorldFamily


class MuZeroFamily(WorldFamily):
    """A model of latents without a decoder, which an agent trains."""

    name = "muzero"
    title = "MuZero"
    simulator_class = "vwm.models.muzero.MuZeroSimulator"
    report = "compounding_error"
