"""V-JEPA 2-AC as its authors publish it: a world of a robot arm in representation space."""

from __future__ import annotations

from pathlib import Path

from vwm.core.published_files import find_published_file
from vwm.core.spaces import ActionSpace
from vwm.core.weight_mapping import PretrainedWeightsError
from vwm.models.vjepa.end_effector import POSE_NAMES, POSE_SIZE
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.official_weights import load_official_vjepa
from vwm.models.vjepa.simulator import VJEPAACSimulator

CHECKPOINT = "vjepa2-ac-vitg.pt"
IMAGE_SIDE = 256
CLIP_FRAMES = 64
"""Frames for which the published networks are made; their predictor remembers half as many, one for each tubelet."""
FPS = 4.0


def load_vjepa2_ac(source: Path) -> VJEPAACSimulator:
    """Load the published checkpoint as a simulator without images.

    Its actions are differences of two poses of the end effector, a quarter of a second apart: meters, radians, and the
    share by which the gripper closes; see ``vwm.models.vjepa.end_effector``. Latents are layer-normed features of
    single frames.

    Args:
        source: the file, or a folder with ``vjepa2-ac-vitg.pt``.

    Raises:
        PretrainedWeightsError: the file is missing, broken or another checkpoint.
    """
    file = source if source.is_file() else find_published_file(source, (CHECKPOINT,))
    # As the publishers' own loader: the encoder stayed frozen, and has no average of its own.
    found = load_official_vjepa(file, source="encoder", image_size=(IMAGE_SIDE, IMAGE_SIDE), frames=CLIP_FRAMES)
    if found.dynamics is None or found.dynamics.config.action_dims != POSE_SIZE:
        raise PretrainedWeightsError(
            f"{file}: its predictor takes no actions of {POSE_SIZE} numbers, so it is no V-JEPA 2-AC; encoders and "
            "masked predictors are imported by tools/import_vjepa.py"
        )
    projector = LatentProjector(
        grid=found.encoder.spatial_grid, width=found.encoder.width, pooling="none", latent_width=0, norm="layer"
    )
    return VJEPAACSimulator(
        encoder=found.encoder,
        projector=projector,
        dynamics=found.dynamics,
        decoder=None,
        actions=ActionSpace("continuous", POSE_SIZE, POSE_NAMES),
        fps=FPS,
        context_frames=1,
        title="V-JEPA 2-AC",
    )
