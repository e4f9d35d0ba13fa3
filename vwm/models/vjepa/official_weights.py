"""Load the official weights of V-JEPA, V-JEPA 2, V-JEPA 2-AC and V-JEPA 2.1, and of their attentive probes.

A checkpoint is a ``.pt`` file with ``encoder``, ``target_encoder`` (or ``ema_encoder``), ``predictor`` and a trainer
state. The file of a probe has ``classifiers``, one for each setting of a sweep. No code in the files is executed.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vwm.core.published_files import as_state_dict, read_published_weights
from vwm.core.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    count_numbered_layers,
    get_weight,
    infer_mlp_ratio,
    load_mapped_weights,
)
from vwm.models.vjepa.action_conditioned_predictor import ActionConditionedPredictor
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.end_effector import POSE_SIZE
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType
from vwm.models.vjepa.video_encoder import VideoEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ENCODER_HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
"""Number of attention heads of the released encoders by width, which the weights do not determine."""
VJEPA21_FEATURE_LAYERS = {12: (2, 5, 8), 24: (5, 11, 17), 40: (9, 19, 29), 48: (11, 23, 37)}
"""Feature layers of the V-JEPA 2.1 encoders (layers before the last with their own norm), by depth."""
ROPE_REFERENCE_PIXELS = 256
"""Image size to which V-JEPA 2.1 scales the positions of images of any size."""
DEFAULT_MASK_TOKEN = 1
"""Index of the mask token that the official hub code and transformers use."""

EncoderSource = Literal["encoder", "target_encoder", "ema_encoder"]


class PretrainedVJEPA(NamedTuple):
    """Pretrained networks, frozen and in evaluation mode."""

    encoder: VideoEncoder
    predictor: MaskedPredictor | None
    classifier: AttentiveClassifier | None = None
    dynamics: ActionConditionedPredictor | None = None


def load_official_vjepa(
    path: str | os.PathLike[str],
    source: EncoderSource | None = None,
    image_size: tuple[int, int] = (256, 256),
    frames: int = 64,
    positions: PositionEncodingType = "rope",
    tiled_rope: bool | None = None,
    heads: int | None = None,
    predictor_num_heads: int | None = None,
    mask_token_index: int = DEFAULT_MASK_TOKEN,
) -> PretrainedVJEPA:
    """Load a checkpoint of V-JEPA, V-JEPA 2, V-JEPA 2-AC or V-JEPA 2.1.

    Settings that the weights do not determine are arguments. V-JEPA: ``image_size=(224, 224), frames=16,
    positions="sincos"`` and ``predictor_num_heads`` as in the encoder. V-JEPA 2: 256 or 384 pixels. V-JEPA 2-AC: 256.
    V-JEPA 2.1: 384.

    Args:
        path: the ``.pt`` file.
        source: the encoder to load; by default the target encoder, the moving average that provides features.
        image_size: (height, width) of the frames.
        frames: clip length; of V-JEPA 2-AC, the frames of a tubelet times those that its predictor remembers.
        positions: ``"rope"`` or ``"sincos"``.
        tiled_rope: see ``PositionEncoding.tiled``; by default as released, True for V-JEPA 2 and False for 2.1.
        heads: number of heads of the encoder; by default that of the released encoder of this width.
        predictor_num_heads: number of heads of the predictor; by default as released, 12, and 16 of V-JEPA 2-AC.
        mask_token_index: default mask token of the predictor, modulo their number. The official hub code and
            transformers use 1; training with clips of one length trains only 0.

    Raises:
        PretrainedWeightsError: the file does not exist or is no checkpoint; or weights are missing, have another shape
            or are not used.
    """
    checkpoint = read_published_weights(path)
    averaged = (name for name in ("target_encoder", "ema_encoder") if name in checkpoint)
    key = next(averaged, "encoder") if source is None else source
    where = f"{path}, {key}"
    settings: dict[str, Any] = {"image_size": tuple(image_size), "frames": frames, "positions": positions}
    encoder = _load_encoder(as_state_dict(checkpoint.get(key), where), settings, tiled_rope, heads, where)
    if "predictor" not in checkpoint:
        return PretrainedVJEPA(encoder, None)
    where = f"{path}, predictor"
    weights = as_state_dict(checkpoint["predictor"], where)
    if "action_encoder.weight" in weights:
        dynamics = _load_action_conditioned_predictor(weights, encoder, predictor_num_heads or 16, where)
        return PretrainedVJEPA(encoder, None, dynamics=dynamics)
    predictor = _load_predictor(
        weights, encoder=encoder, heads=predictor_num_heads or 12, mask_token_index=mask_token_index, where=where
    )
    return PretrainedVJEPA(encoder, predictor)


def load_official_vjepa_probe(path: str | os.PathLike[str], number: int = 0, heads: int = 16) -> AttentiveClassifier:
    """Load an attentive probe.

    Args:
        path: the ``.pt`` file.
        number: index in its ``classifiers``.
        heads: number of attention heads.

    Raises:
        PretrainedWeightsError: see ``load_official_vjepa``; or there is no such classifier.
    """
    probes = read_published_weights(path).get("classifiers")
    if not isinstance(probes, list) or not 0 <= number < len(probes):
        count = len(probes) if isinstance(probes, list) else 0
        raise PretrainedWeightsError(f"{path}: there is no probe {number} in classifiers, which has {count} entries")
    where = f"{path}, classifiers[{number}]"
    weights = as_state_dict(probes[number], where)
    classes, width = get_weight(weights, "linear.weight", where).shape
    probe = AttentiveClassifier(
        width=width,
        classes=classes,
        heads=heads,
        depth=count_numbered_layers(weights, "pooler.blocks") + 1,
        mlp_ratio=infer_mlp_ratio(weights, "pooler.cross_attention_block", where),
    )
    return load_mapped_weights(probe, weights, lambda name: [name], where)


def _load_encoder(
    weights: StateDict, settings: dict[str, Any], tiled_rope: bool | None, heads: int | None, where: str
) -> VideoEncoder:
    width, _, tubelet, patch, _ = get_weight(weights, "patch_embed.proj.weight", where, axes=5).shape
    depth = count_numbered_layers(weights, "blocks")
    heads = ENCODER_HEADS_BY_WIDTH.get(width) if heads is None else heads
    if heads is None:
        raise PretrainedWeightsError(f"{where}: no released encoder has width {width}: give the number of heads")
    is_vjepa21 = count_numbered_layers(weights, "norms_block") > 0
    if is_vjepa21 and depth not in VJEPA21_FEATURE_LAYERS:
        raise PretrainedWeightsError(
            f"{where}: V-JEPA 2.1 has encoders of depth {', '.join(map(str, VJEPA21_FEATURE_LAYERS))}, not {depth}"
        )
    feature_layers = VJEPA21_FEATURE_LAYERS[depth] if is_vjepa21 else ()
    rope = settings["positions"] == "rope"
    encoder = VideoEncoder(
        **settings,
        tubelet=tubelet,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=infer_mlp_ratio(weights, "blocks.0", where),
        mlp="swiglu" if "blocks.0.mlp.fc3.weight" in weights else "gelu",
        tiled_rope=rope and (not is_vjepa21 if tiled_rope is None else tiled_rope),
        uniform_power=_infer_uniform_power(weights.pop("pos_embed", None), settings, width, tubelet, patch, where),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        modality_embeddings="video_mod_embed" in weights,
        feature_layers=feature_layers,
        rope_reference_grid=(ROPE_REFERENCE_PIXELS // patch, ROPE_REFERENCE_PIXELS // patch) if is_vjepa21 else None,
    )

    def name_map(name: str) -> list[str]:
        if is_vjepa21:
            name = re.sub(r"^norm\.", f"norms_block.{len(feature_layers)}.", name)
            for number, layer in enumerate(feature_layers):
                name = name.replace(f"feature_norms.{layer}.", f"norms_block.{number}.")
        return [name]

    return load_mapped_weights(encoder, weights, name_map, where)


def _load_predictor(
    weights: StateDict, encoder: VideoEncoder, heads: int, mask_token_index: int, where: str
) -> MaskedPredictor:
    has_feature_layers = "predictor_embed.2.weight" in weights
    width = get_weight(weights, f"predictor_embed{'.2' if has_feature_layers else ''}.weight", where).shape[0]
    num_feature_layers = len(encoder.config.feature_layers) + 1 if has_feature_layers else 1
    num_mask_tokens = max(1, count_numbered_layers(weights, "mask_tokens"))
    shared = ("image_size", "frames", "tubelet", "patch_size", "positions", "tiled_rope", "rope_reference_grid")
    settings = {name: encoder.config[name] for name in shared}
    table = weights.pop("predictor_pos_embed", None)
    predictor = MaskedPredictor(
        **settings,
        encoder_width=encoder.width,
        width=width,
        depth=count_numbered_layers(weights, "predictor_blocks"),
        heads=heads,
        mlp_ratio=infer_mlp_ratio(weights, "predictor_blocks.0", where),
        mlp="swiglu" if "predictor_blocks.0.mlp.fc3.weight" in weights else "gelu",
        uniform_power=_infer_uniform_power(table, settings, width, encoder.tubelet, encoder.patch_size, where),
        num_mask_tokens=num_mask_tokens,
        mask_token_index=mask_token_index % num_mask_tokens,
        num_feature_layers=num_feature_layers,
        output_width=get_weight(weights, "predictor_proj.weight", where).shape[0] // num_feature_layers,
        modality_embeddings="video_mod_embed" in weights,
        predict_context="predictor_proj_context.weight" in weights,
    )

    def name_map(name: str) -> list[str]:
        if name == "mask_embed":
            return [f"mask_tokens.{number}" for number in range(num_mask_tokens)]
        return [name if "mod_embed" in name else f"predictor_{name}"]

    return load_mapped_weights(predictor, weights, name_map, where, {"mask_embed": (num_mask_tokens, 1, width)})


def _load_action_conditioned_predictor(
    weights: StateDict, encoder: VideoEncoder, heads: int, where: str
) -> ActionConditionedPredictor:
    """Load the predictor of V-JEPA 2-AC, for latents that are the layer-normed features of single frames.

    Its encoder of camera extrinsics is left out: the released predictor does not use it. A state that is unknown gets
    the embedding of the state 0.
    """
    height, columns = encoder.spatial_grid
    if height != columns or encoder.positions.kind != "rope":
        raise PretrainedWeightsError(
            f"{where}: an action-conditioned predictor needs square frames and rope; these are {height}x{columns} "
            f"patches with {encoder.positions.kind}"
        )
    width, action_dims = get_weight(weights, "action_encoder.weight", where).shape
    predictor = ActionConditionedPredictor(
        grid=(height, columns),
        latent_width=encoder.width,
        action_dims=action_dims,
        proprioception_dims=get_weight(weights, "state_encoder.weight", where).shape[1],
        normalize_output=True,
        width=width,
        depth=count_numbered_layers(weights, "predictor_blocks"),
        heads=heads,
        window=max(1, encoder.frames // encoder.tubelet),
        mlp="swiglu" if "predictor_blocks.0.mlp.fc3.weight" in weights else "gelu",
        layers="vit",
        tiled_rope=encoder.config.tiled_rope,
        proprioception_update="end_effector" if action_dims == POSE_SIZE else "none",
    )
    weights = {name: weight for name, weight in weights.items() if not name.startswith("extrinsics_encoder.")}
    weights["unknown_state"] = get_weight(weights, "state_encoder.bias", where, axes=1)
    official_names = {
        "embed.": "predictor_embed.",
        "embed_action.mlp.0.": "action_encoder.",
        "embed_state.": "state_encoder.",
        "unknown_proprioception_embedding": "unknown_state",
        "transformer.": "predictor_",
        "head.": "predictor_proj.",
    }

    def name_map(name: str) -> list[str]:
        prefix = next(prefix for prefix in official_names if name.startswith(prefix))
        return [official_names[prefix] + name.removeprefix(prefix)]

    return load_mapped_weights(predictor, weights, name_map, where)


def _infer_uniform_power(
    table: Tensor | None, settings: dict[str, Any], width: int, tubelet: int, patch: int, where: str
) -> bool:
    """Infer ``uniform_power`` of sincos positions from their published table.

    A network with rope may have an unused table, too.
    """
    if settings["positions"] == "rope":
        return False
    height, columns = settings["image_size"]
    grid = (settings["frames"] // tubelet, height // patch, columns // patch)
    for uniform in (True, False):
        encoding = PositionEncoding("sincos", width, heads=1, uniform_power=uniform)
        expected = encoding.additive_embedding(grid, torch.zeros(1))
        assert expected is not None
        if table is not None and table.shape[1:] == expected.shape and (table[0] - expected).abs().max() < 1e-3:
            return uniform
    found = "missing" if table is None else f"of shape {list(table.shape)}"
    raise PretrainedWeightsError(
        f"{where}: its pos_embed is {found}, not the sines and cosines of {settings['frames']} frames of "
        f"{height}x{columns}: give positions, image_size and frames as in its training"
    )
