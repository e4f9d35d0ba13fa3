"""DIAMOND as a family: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vwm.core.family import ExportSettings, PublishedWorld, WorldFamily

if TYPE_CHECKING:
    from vwm.models.diamond.module import DiamondModule
    from vwm.models.diamond.simulator import DiamondSimulator


class DiamondFamily(WorldFamily):
    """Diffusion in pixels, conditioned on the last frames and actions."""

    name = "diamond"
    title = "DIAMOND"
    simulator_class = "vwm.models.diamond.DiamondSimulator"
    module_classes = ("vwm.models.diamond.DiamondModule",)
    published_files = "atari_100k/models/GAME.pt, csgo/model/csgo.pt"

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """See ``WorldFamily.load_published``: ``variant`` is a game, ``csgo`` or ``csgo-quality``."""
        from vwm.models.diamond.published import load_published_diamond

        return load_published_diamond(source, variant)

    def make_simulator(self, module: DiamondModule, settings: ExportSettings) -> DiamondSimulator:
        """See ``WorldFamily.make_simulator``: by default frames are sampled as in the run's sample videos."""
        from vwm.models.diamond.simulator import DiamondSimulator

        return DiamondSimulator(
            tokenizer=module.tokenizer,
            dynamics=module.dynamics,
            outcomes=module.outcomes,
            actions=module.action_space.named_by(settings.recording),
            sampling=module.sampling,
            **settings.simulator_arguments(),
        )

    def window(self, simulator: DiamondSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.past_frames
