"""What a masked pretraining starts from: networks that fit each other, pretrained weights, and a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vwm.core.components import ComponentError, load_component
from vwm.hub.bundle_names import find_folder
from vwm.models.vjepa.frame_encoder import load_frame_encoder
from vwm.models.vjepa.masked_prediction import ContextLossConfig
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.masking import MaskSampler
from vwm.models.vjepa.video_encoder import VideoEncoder


def check_vjepa_networks(
    encoder: VideoEncoder,
    predictor: MaskedPredictor,
    mask_samplers: Sequence[MaskSampler],
    context_loss: ContextLossConfig | None = None,
    mask_token: int | None = None,
    teacher: VideoEncoder | None = None,
) -> None:
    """Raise ValueError if the networks do not fit each other, naming both values."""
    if not mask_samplers:
        raise ValueError("mask_samplers is empty: give at least one, such as vwm.models.vjepa.MultiBlockMaskSampler")
    _check_same_tokens("encoder", encoder, "predictor", predictor)
    if predictor.config.encoder_width != encoder.config.width:
        raise ValueError(
            f"predictor.encoder_width={predictor.config.encoder_width} but encoder.width={encoder.config.width}: "
            "set them equal"
        )
    if mask_token is not None and not 0 <= mask_token < predictor.config.num_mask_tokens:
        raise ValueError(f"mask_token={mask_token} must be 0..{predictor.config.num_mask_tokens - 1}, or null")
    levels, layers = predictor.config.num_feature_layers, list(encoder.config.feature_layers)
    if levels not in (1, len(layers) + 1):
        raise ValueError(
            f"predictor.num_feature_layers={levels}, but the encoder has {len(layers) + 1} layers of features "
            f"(feature_layers={layers} and the last one): set 1 or {len(layers) + 1}"
        )
    targets, name, needed = (
        (encoder, "encoder", "null") if teacher is None else (teacher, "teacher", str(teacher.config.width))
    )
    if (predictor.config.output_width or predictor.config.encoder_width) != targets.config.width:
        raise ValueError(
            f"predictor.output_width={predictor.config.output_width} but the targets have {name}.width="
            f"{targets.config.width}: set predictor.output_width to {needed}"
        )
    if predictor.config.predict_context != (context_loss is not None):
        raise ValueError(
            f"predictor.predict_context={predictor.config.predict_context}, and context_loss is "
            f"{'missing' if context_loss is None else 'set'}: a loss of the visible tokens needs both"
        )
    if teacher is None:
        return
    _check_same_tokens("teacher", teacher, "encoder", encoder)
    if levels not in (1, len(teacher.config.feature_layers) + 1):
        raise ValueError(
            f"predictor.num_feature_layers={levels}, but the teacher has {len(teacher.config.feature_layers) + 1} "
            f"layers of features: set 1, or take another teacher"
        )


def _check_same_tokens(
    name: str, network: VideoEncoder, other_name: str, other_network: VideoEncoder | MaskedPredictor
) -> None:
    for setting in ("image_size", "patch_size", "tubelet"):
        value, other = network.config[setting], other_network.config[setting]
        if (tuple(value) if setting == "image_size" else value) != (tuple(other) if setting == "image_size" else other):
            raise ValueError(f"{name}.{setting}={value} but {other_name}.{setting}={other}: set them equal")


def load_pretrained_networks(folder: str, networks: dict[str, Any]) -> None:
    """Load the weights of networks from subfolders with their names. Raises ComponentError or ValueError."""
    for name, network in networks.items():
        expected, weights = network.state_dict(), load_component(find_folder(folder) / name).state_dict()
        mismatched = [k for k in expected.keys() | weights.keys() if k not in expected or k not in weights]
        mismatched += [k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape]
        if mismatched:
            raise ValueError(f"{folder}/{name} does not fit the config's {name}: {', '.join(sorted(mismatched)[:8])}")
        if not any(weight.is_meta for weight in network.parameters()):  # such a network gets its values later
            network.load_state_dict(weights)


def load_teacher(path: str) -> VideoEncoder:
    """Load the frozen encoder of an export, or of imported weights. Raises ComponentError, naming the folder."""
    teacher = load_frame_encoder(path)
    if not isinstance(teacher, VideoEncoder):
        raise ComponentError(f"{path} holds a {type(teacher).__name__}, and a teacher is a VideoEncoder")
    return teacher.eval().requires_grad_(False)
