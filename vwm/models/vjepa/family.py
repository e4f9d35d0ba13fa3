"""V-JEPA as a family: see ``WorldFamily``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vwm.core.components import COMPONENT_CONFIG_FILE
from vwm.core.family import ExportedNetworks, ExportSettings, PublishedWorld, VideoSurprise, WorldFamily
from vwm.core.feature_extractor import FeatureExtractor
from vwm.nn.actions import embedded_action_space

if TYPE_CHECKING:
    from vwm.data.mixtures import DataPath
    from vwm.models.vjepa.action_conditioned_module import ActionConditionedJEPAModule
    from vwm.models.vjepa.module import VJEPAModule
    from vwm.models.vjepa.simulator import VJEPAACSimulator
    from vwm.models.vjepa.supervised_module import SupervisedVJEPAModule


ORIGIN = "Weights of V-JEPA 2-AC by Meta (arXiv 2506.09985), published at https://github.com/facebookresearch/vjepa2."


class VJEPAFamily(WorldFamily):
    """Pretrained encoders with their masked predictor, and action-conditioned simulators in representation space."""

    name = "vjepa"
    title = "V-JEPA"
    simulator_class = "vwm.models.vjepa.VJEPAACSimulator"
    module_classes = (
        "vwm.models.vjepa.VJEPAModule",
        "vwm.models.vjepa.SupervisedVJEPAModule",
        "vwm.models.vjepa.ActionConditionedJEPAModule",
    )
    report = "latent_error"
    published_files = "vjepa2-ac-vitg.pt, V-JEPA 2-AC"

    def export_networks(
        self,
        module: VJEPAModule | SupervisedVJEPAModule | ActionConditionedJEPAModule,
        data: DataPath | None,
        average: bool,
    ) -> ExportedNetworks | None:
        """See ``WorldFamily.export_networks``: encoder (on average: the target encoder) and predictor of a V-JEPA.

        Of a supervised training: encoder and probe.
        """
        from vwm.models.vjepa.module import VJEPAModule
        from vwm.models.vjepa.supervised_module import SupervisedVJEPAModule

        if isinstance(module, SupervisedVJEPAModule):
            return ExportedNetworks(
                {"encoder": module.encoder, "probe": module.probe},
                contents="encoder and probe",
                next_command=("probe", "{out}", "{data}"),
            )
        if not isinstance(module, VJEPAModule):
            return None
        encoder = (module.target_encoder if average else None) or module.encoder
        return ExportedNetworks(
            {"encoder": encoder, "predictor": module.predictor},
            contents="encoder and predictor",
            next_command=("probe", "{out}", "{data}"),
        )

    def make_simulator(self, module: ActionConditionedJEPAModule, settings: ExportSettings) -> VJEPAACSimulator:
        """See ``WorldFamily.make_simulator``."""
        from vwm.models.vjepa.simulator import VJEPAACSimulator

        return VJEPAACSimulator(
            encoder=module.encoder,
            projector=module.projector,
            dynamics=module.dynamics,
            decoder=module.decoder,
            actions=embedded_action_space(module.dynamics.embed_action, settings.recording),
            **settings.simulator_arguments(),
        )

    def load_published(self, source: Path, variant: str = "") -> PublishedWorld:
        """See ``WorldFamily.load_published``: V-JEPA 2-AC."""
        from vwm.models.vjepa.published_world import load_vjepa2_ac

        if variant:
            raise ValueError(f"there is one V-JEPA 2-AC, and no variant {variant!r}: leave it out")
        return PublishedWorld(load_vjepa2_ac(source), license="mit", origin=ORIGIN)

    def window(self, simulator: VJEPAACSimulator) -> int:
        """See ``WorldFamily.window``."""
        return simulator.dynamics.transformer.span.window

    def feature_extractor(self, simulator: VJEPAACSimulator, layer: int | None = None) -> FeatureExtractor:
        """See ``WorldFamily.feature_extractor``: the encoder's."""
        from vwm.models.vjepa.features import EncoderFeatureExtractor

        return EncoderFeatureExtractor(simulator.encoder, layer)

    def load_features(
        self, folder: Path, layer: int | None = None, image_size: tuple[int, int] | None = None
    ) -> FeatureExtractor | None:
        """See ``WorldFamily.load_features``: of a folder with an ``encoder``."""
        from vwm.models.vjepa.features import EncoderFeatureExtractor
        from vwm.models.vjepa.frame_encoder import load_frame_encoder

        if not (folder / "encoder" / COMPONENT_CONFIG_FILE).is_file():
            return None
        return EncoderFeatureExtractor(load_frame_encoder(str(folder)), layer)

    def load_surprise_scorer(
        self, folder: Path, context: int | None, mask_token: int | None, device: str
    ) -> VideoSurprise | None:
        """See ``WorldFamily.load_surprise_scorer``: of an ``encoder`` and its ``predictor``."""
        from vwm.models.vjepa.surprise import load_vjepa_surprise

        if not (folder / "encoder" / COMPONENT_CONFIG_FILE).is_file():
            return None
        return load_vjepa_surprise(folder, context, mask_token, device)
