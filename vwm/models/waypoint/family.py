"""Waypoint 1 as a family: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path

from vwm.core.family import PublishedWorld, WorldFamily


class WaypointFamily(WorldFamily):
    """Worlds by keyboard, mouse and text, from published weights."""

    name = "waypoint"
    title = "Waypoint"
    simulator_class = "vwm.models.waypoint.WaypointSimulator"
    published_files = (
        "config.yaml and model.safetensors of Overworld/Waypoint-1-Small, with encoder.safetensors and "
        "decoder.safetensors of OpenWorldLabs/owl_vae_f16_c16_distill_v0_nogan"
    )

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """See ``WorldFamily.load_published``: there is one world a folder."""
        from vwm.models.waypoint.published import load_waypoint

        if variant:
            raise ValueError(f"a folder holds one Waypoint, and no variant {variant!r}: leave it out")
        return load_waypoint(source)
