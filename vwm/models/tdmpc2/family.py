"""TD-MPC2's latent model as a family: see ``WorldFamily``."""

from __future__ import annotations

from vwm.core.family import WorldFamily


class TDMPC2Family(WorldFamily):
    """A model of latents without a decoder, which an agent trains and exports."""

    name = "tdmpc2"
    title = "TD-MPC2"
    simulator_class = "vwm.models.tdmpc2.TDMPC2Simulator"
    report = "compounding_error"
