"""The autoregressive token world as a family: see ``WorldFamily``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vwm.core.family import ExportSettings, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor

if TYPE_CHECKING:
    from vwm.models.autoregressive.module import AutoregressiveModule
    from vwm.models.autoregressive.simulator import AutoregressiveSimulator


class AutoregressiveFamily(WorldFamily):
    """The next token over space and time, conditioned on actions."""

    name = "autoregressive"
    title = "Autoregressive tokens"
    simulator_class = "vwm.models.autoregressive.AutoregressiveSimulator"
    module_classes = ("vwm.models.autoregressive.AutoregressiveModule",)

    def make_simulator(self, module: AutoregressiveModule, settings: ExportSettings) -> AutoregressiveSimulator:
        """See ``WorldFamily.make_simulator``: by default frames are sampled as in the run's sample videos."""
        from vwm.models.autoregressive.simulator import AutoregressiveSimulator

        return AutoregressiveSimulator(
            tokenizer=module.tokenizer,
            dynamics=module.dynamics,
            outcomes=module.outcomes,
            actions=module.dynamics.action_space.named_by(settings.recording),
            sampling=module.sampling,
            **settings.simulator_arguments(),
        )

    def window(self, simulator: AutoregressiveSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.transformer.span.window

    def feature_extractor(self, simulator: AutoregressiveSimulator, layer: int | None = None) -> FeatureExtractor:
        """See ``WorldFamily.feature_extractor``: a layer of the dynamics."""
        from vwm.models.autoregressive.features import AutoregressiveFeatureExtractor

        return AutoregressiveFeatureExtractor(simulator, layer)
