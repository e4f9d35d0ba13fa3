"""The recurrent state-space model of PlaNet and Dreamer as a family: see ``WorldFamily``."""

from __future__ import annotations

from vwm.core.family import WorldFamily


class RSSMFamily(WorldFamily):
    """A latent model of images or vectors, which an agent trains and exports."""

    name = "rssm"
    title = "RSSM"
    simulator_class = "vwm.models.rssm.RSSMSimulator"
    report = "compounding_error"
