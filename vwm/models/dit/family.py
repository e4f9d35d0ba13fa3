"""The diffusion transformer as a family: see ``WorldFamily``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vwm.core.family import ExportSettings, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor
from vwm.nn.actions import embedded_action_space

if TYPE_CHECKING:
    from vwm.models.dit.module import DiTModule
    from vwm.models.dit.simulator import DiTSimulator


class DiTFamily(WorldFamily):
    """Diffusion over a tokenizer's continuous latents."""

    name = "dit"
    title = "diffusion transformer"
    simulator_class = "vwm.models.dit.DiTSimulator"
    module_classes = ("vwm.models.dit.DiTModule",)

    def make_simulator(self, module: DiTModule, settings: ExportSettings) -> DiTSimulator:
        """See ``WorldFamily.make_simulator``: by default frames are sampled as in the run's sample videos."""
        from vwm.models.dit.agent_module import DiTAgentModule
        from vwm.models.dit.simulator import DiTSimulator

        return DiTSimulator(
            tokenizer=module.tokenizer,
            dynamics=module.dynamics,
            outcomes=module.outcomes,
            actions=embedded_action_space(module.dynamics.embed_action, settings.recording),
            policy=module.policy if isinstance(module, DiTAgentModule) else None,
            sampling=module.sampling,
            **settings.simulator_arguments(),
        )

    def window(self, simulator: DiTSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.transformer.span.window

    def feature_extractor(self, simulator: DiTSimulator, layer: int | None = None) -> FeatureExtractor:
        """See ``WorldFamily.feature_extractor``: a layer of the network."""
        from vwm.models.dit.features import DiTFeatureExtractor

        return DiTFeatureExtractor(simulator, layer)
