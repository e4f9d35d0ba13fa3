"""Oasis as a family: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vwm.core.family import PublishedWorld, WorldFamily

if TYPE_CHECKING:
    from vwm.models.oasis.simulator import OasisSimulator

ORIGIN = (
    "Weights of Oasis 500M by Decart and Etched, published as Etched/oasis-500m on the Hugging Face Hub "
    "(https://oasis-model.github.io)."
)


class OasisFamily(WorldFamily):
    """Minecraft by keyboard and mouse, from published weights."""

    name = "oasis"
    title = "Oasis"
    simulator_class = "vwm.models.oasis.OasisSimulator"
    published_files = "oasis500m.safetensors and vit-l-20.safetensors of Etched/oasis-500m"

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """See ``WorldFamily.load_published``: there is one world."""
        from vwm.models.oasis.actions import minecraft_actions
        from vwm.models.oasis.published import load_oasis
        from vwm.models.oasis.simulator import OasisSimulator

        if variant:
            raise ValueError(f"there is one Oasis, and no variant {variant!r}: leave it out")
        tokenizer, dynamics = load_oasis(source)
        simulator = OasisSimulator(
            tokenizer, dynamics, minecraft_actions(), fps=20.0, context_frames=1, title="Oasis 500M"
        )
        return PublishedWorld(simulator, license="mit", origin=ORIGIN)

    def window(self, simulator: OasisSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.window
