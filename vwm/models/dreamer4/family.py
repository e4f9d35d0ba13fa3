"""Dreamer 4 in PyTorch as a family: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vwm.core.family import PublishedWorld, WorldFamily

if TYPE_CHECKING:
    from vwm.models.dreamer4.simulator import Dreamer4Simulator


class Dreamer4Family(WorldFamily):
    """Worlds of many control tasks, from published weights."""

    name = "dreamer4"
    title = "Dreamer 4 in PyTorch"
    simulator_class = "vwm.models.dreamer4.Dreamer4Simulator"
    published_files = (
        "tokenizer.pt and dynamics.pt of nicklashansen/mmbench2-models, or tokenizer_ckpt.pt and dynamics_ckpt.pt of "
        "nicklashansen/dreamer4"
    )

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """See ``WorldFamily.load_published``: a variant is a task, which ``tasks.json`` in the folder describes."""
        from vwm.models.dreamer4.published import load_dreamer4

        return load_dreamer4(source, variant)

    def window(self, simulator: Dreamer4Simulator) -> int:
        """See ``WorldFamily.window``."""
        return int(simulator.dynamics.window)
