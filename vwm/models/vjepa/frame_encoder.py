"""Encoders of single frames, and checks that the networks of a model in representation space fit each other."""

from __future__ import annotations

from torch import Tensor

from vwm.core.components import ComponentError, load_component
from vwm.hub.bundle_names import find_folder
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.conv_encoder import ConvFrameEncoder
from vwm.models.vjepa.latent_decoder import LatentDecoder
from vwm.models.vjepa.latent_projector import LatentProjector
from vwm.models.vjepa.video_encoder import VideoEncoder

FrameEncoder = VideoEncoder | ConvFrameEncoder
"""Encoders that can encode single frames."""


def encode_frame_latents(encoder: FrameEncoder, projector: LatentProjector, video: Tensor) -> Tensor:
    """Encode each frame independently.

    Args:
        encoder: the encoder; a ``VideoEncoder`` repeats a frame to fill a tubelet, as in V-JEPA 2-AC.
        projector: maps its features to latents.
        video: float [b, t, 3, height, width] in [-1, 1].

    Returns:
        [b, t, n, D].
    """
    features = encoder(video.flatten(0, 1)[:, None])
    return projector(features.unflatten(0, video.shape[:2]))


def load_frame_encoder(path: str) -> FrameEncoder:
    """Load the frozen encoder of an export, or of its own folder. Raises ComponentError, naming the folder."""
    folder = find_folder(path)
    export = folder / "encoder"
    encoder = load_component(export if export.is_dir() else folder)
    if not isinstance(encoder, FrameEncoder):
        raise ComponentError(
            f"{path} holds a {type(encoder).__name__}, which is no encoder (VideoEncoder, ConvFrameEncoder)"
        )
    return encoder


def check_jepa_world_networks(
    encoder: FrameEncoder,
    projector: LatentProjector,
    dynamics: ActionConditionedPredictor,
    decoder: LatentDecoder | None,
) -> None:
    """Raise ValueError if the networks do not fit each other, naming both values."""
    pairs = [
        ("projector.width", projector.width, "the encoder's width", encoder.width),
        ("projector.grid", tuple(projector.config.grid), "the encoder's tokens", tuple(encoder.spatial_grid)),
        ("dynamics.latent_width", dynamics.latent_width, "the projector's", projector.latent_width),
        ("dynamics.grid", dynamics.grid, "the projector's latents", projector.latent_grid),
    ]
    if decoder is not None:
        pairs += [
            ("decoder.latent_width", decoder.latent_width, "the projector's", projector.latent_width),
            ("decoder.grid", decoder.grid, "the projector's latents", projector.latent_grid),
            ("decoder.image_size", decoder.image_size, "the encoder's", tuple(encoder.image_size)),
        ]
    for name, value, other_name, other in pairs:
        if value != other:
            raise ValueError(f"{name}={value} but {other_name}: {other}. Set {name} to {other}.")
