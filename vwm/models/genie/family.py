"""Genie as a family: see ``WorldFamily``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from vwm.core.family import CacheComparison, ExportedNetworks, ExportSettings, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor

if TYPE_CHECKING:
    from vwm.models.genie.latent_action_module import LatentActionModule
    from vwm.models.genie.module import GenieModule
    from vwm.models.genie.simulator import GenieSimulator


class GenieFamily(WorldFamily):
    """Latent or labeled actions, and masked dynamics over tokens."""

    name = "genie"
    title = "Genie"
    simulator_class = "vwm.models.genie.GenieSimulator"
    module_classes = ("vwm.models.genie.GenieModule", "vwm.models.genie.LatentActionModule")

    def export_networks(
        self, module: GenieModule | LatentActionModule, data: str | None, average: bool
    ) -> ExportedNetworks | None:
        """See ``WorldFamily.export_networks``: a latent action model that was trained alone."""
        from vwm.models.genie.latent_action_module import LatentActionModule

        if not isinstance(module, LatentActionModule):
            return None
        following = ("fit", "-c", "CONFIG", "--data", "{data}", "--model.init_args.pretrained_actions", "{out}")
        return ExportedNetworks({"latent_action": module.latent_action}, "a latent action model", following)

    def make_simulator(self, module: GenieModule, settings: ExportSettings) -> GenieSimulator:
        """See ``WorldFamily.make_simulator``."""
        from vwm.models.genie.simulator import GenieSimulator

        if module.latent_action is None:
            actions = module.dynamics.action_space.named_by(settings.recording)
        else:
            actions = module.latent_action.action_space
        return GenieSimulator(
            tokenizer=module.tokenizer,
            dynamics=module.dynamics,
            latent_action=module.latent_action,
            actions=actions,
            outcomes=module.outcomes,
            **settings.simulator_arguments(),
        )

    def window(self, simulator: GenieSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.transformer.span.window

    def feature_extractor(self, simulator: GenieSimulator, layer: int | None = None) -> FeatureExtractor:
        """See ``WorldFamily.feature_extractor``: a layer of the dynamics."""
        from vwm.models.genie.features import GenieFeatureExtractor

        return GenieFeatureExtractor(simulator, layer)

    def compare_cache(
        self, simulator: GenieSimulator, context: Tensor, actions: Callable[[int], Tensor]
    ) -> CacheComparison | None:
        """See ``WorldFamily.compare_cache``; only for tokenizers of single frames with a window of their own."""
        from vwm.models.genie.uncached import GenieCacheComparison
        from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer

        if not isinstance(simulator.tokenizer, SpaceTimeTokenizer):
            return None
        return GenieCacheComparison(simulator, context, actions)
