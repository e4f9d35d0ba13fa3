"""The official weights of V-JEPA, V-JEPA 2 and V-JEPA 2.1, and of their attentive probes.

A checkpoint is a ``.pt`` file of ``encoder``, ``target_encoder`` (or ``ema_encoder``), ``predictor`` and what training
needs beside; the file of a probe has ``classifiers``, one for each setting of a sweep. Nothing in them is executed.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.models.vjepa.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    count_numbered_layers,
    get_weight,
    infer_mlp_ratio,
    load_mapped_weights,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
"""Attention heads of the released encoders by their width, which no weight tells."""
VJEPA21_FEATURE_LAYERS = {12: (2, 5, 8), 24: (5, 11, 17), 40: (9, 19, 29), 48: (11, 23, 37)}
"""Layers of the V-JEPA 2.1 encoders that have a norm of their own before the last, by depth."""
ROPE_REFERENCE_PIXELS = 256
"""V-JEPA 2.1 counts places as those of pictures with so many pixels a side, whatever their size."""
DEFAULT_MASK_TOKEN = 1
"""The mask token that the official hub code and transformers use."""

EncoderSource = Literal["encoder", "target_encoder", "ema_encoder"]


class PretrainedVJEPA(NamedTuple):
    """What was read, frozen and in evaluation mode."""

    encoder: VideoEncoder
    predictor: MaskedPredictor | None
    classifier: AttentiveClassifier | None = None


def load_official_vjepa(
    path: str | os.PathLike[str],
    source: EncoderSource | None = None,
    image_size: tuple[int, int] = (256, 256),
    frames: int = 64,
    positions: PositionEncodingType = "rope",
    tiled_rope: bool | None = None,
    heads: int | None = None,
    predictor_num_heads: int = 12,
    mask_token: int = DEFAULT_MASK_TOKEN,
) -> PretrainedVJEPA:
    """Read a checkpoint of V-JEPA, V-JEPA 2 or V-JEPA 2.1.

    What the weights do not tell has to be said. The first V-JEPA: ``image_size=(224, 224), frames=16,
    positions="sincos"``, and as many heads in the predictor as in the encoder. V-JEPA 2: 256 or 384 pixels. 2.1: 384.

    Args:
        path: the ``.pt`` file.
        source: which encoder; by default the target encoder, the moving average that features are taken from.
        image_size: (height, width) of the frames.
        frames: clip length.
        positions: ``"rope"`` or ``"sincos"``.
        tiled_rope: see ``PositionEncoding``; by default as it was released: tiled in V-JEPA 2, mended in 2.1.
        heads: of the encoder; by default the released one's of this width.
        predictor_num_heads: of the predictor.
        mask_token: the predictor's default one. The official hub code and transformers read number 1 (counted around
            where there are fewer); training with clips of a single length moves number 0 alone.

    Raises:
        PublishedError: no such file or no checkpoint; a key is missing, misshapen or without a use.
    """
    checkpoint = _read_checkpoint(Path(path))
    best = (name for name in ("target_encoder", "ema_encoder") if name in checkpoint)
    chosen = next(best, "encoder") if source is None else source
    where = f"{path}, {chosen}"
    settings: dict[str, Any] = {"image_size": tuple(image_size), "frames": frames, "positions": positions}
    encoder = _load_encoder(_strip_wrapper_prefixes(checkpoint.get(chosen), where), settings, tiled_rope, heads, where)
    predictor = None
    if "predictor" in checkpoint:
        where = f"{path}, predictor"
        predictor = _load_predictor(
            _strip_wrapper_prefixes(checkpoint["predictor"], where), encoder, predictor_num_heads, mask_token, where
        )
    return PretrainedVJEPA(encoder, predictor)


def load_official_vjepa_probe(path: str | os.PathLike[str], number: int = 0, heads: int = 16) -> AttentiveClassifier:
    """Read an attentive probe.

    Args:
        path: the ``.pt`` file.
        number: which of its ``classifiers``.
        heads: attention heads.

    Raises:
        PublishedError: as ``load_official_vjepa``.
    """
    probes = _read_checkpoint(Path(path)).get("classifiers")
    if not isinstance(probes, list) or not 0 <= number < len(probes):
        has = f"{len(probes)} of them" if isinstance(probes, list) else "none at all"
        raise PretrainedWeightsError(f"{path}: there is no probe {number} in its classifiers: it has {has}")
    where = f"{path}, classifiers[{number}]"
    weights = _strip_wrapper_prefixes(probes[number], where)
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
    depth, heads = (
        count_numbered_layers(weights, "blocks"),
        ENCODER_HEADS_BY_WIDTH.get(width) if heads is None else heads,
    )
    if heads is None:
        raise PretrainedWeightsError(f"{where}: no released encoder has width {width}: say how many heads it has")
    dense = count_numbered_layers(weights, "norms_block") > 0  # V-JEPA 2.1
    if dense and depth not in VJEPA21_FEATURE_LAYERS:
        raise PretrainedWeightsError(
            f"{where}: V-JEPA 2.1 has encoders of depth {', '.join(map(str, VJEPA21_FEATURE_LAYERS))}, not {depth}"
        )
    levels = VJEPA21_FEATURE_LAYERS[depth] if dense else ()
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
        tiled_rope=rope and (not dense if tiled_rope is None else tiled_rope),
        uniform_power=_infer_uniform_power(weights.pop("pos_embed", None), settings, width, tubelet, patch, where),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        modalities="video_mod_embed" in weights,
        levels=levels,
        rope_spread=(ROPE_REFERENCE_PIXELS // patch, ROPE_REFERENCE_PIXELS // patch) if dense else None,
    )

    def layout(name: str) -> list[str]:
        if dense:
            name = re.sub(r"^norm\.", f"norms_block.{len(levels)}.", name)
            for number, level in enumerate(levels):
                name = name.replace(f"feature_norms.{level}.", f"norms_block.{number}.")
        return [name]

    return load_mapped_weights(encoder, weights, layout, where)


def _load_predictor(
    weights: StateDict, encoder: VideoEncoder, heads: int, mask_token: int, where: str
) -> MaskedPredictor:
    several = "predictor_embed.2.weight" in weights
    width = get_weight(weights, f"predictor_embed{'.2' if several else ''}.weight", where).shape[0]
    levels = len(encoder.config.levels) + 1 if several else 1
    tokens = count_numbered_layers(weights, "mask_tokens")
    shared = ("image_size", "frames", "tubelet", "patch_size", "positions", "tiled_rope", "rope_spread")
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
        mask_tokens=max(1, tokens),
        mask_token=mask_token % max(1, tokens),
        levels=levels,
        output_width=get_weight(weights, "predictor_proj.weight", where).shape[0] // levels,
        modalities="video_mod_embed" in weights,
        predict_context="predictor_proj_context.weight" in weights,
    )

    def layout(name: str) -> list[str]:
        if name == "mask_embed":
            return [f"mask_tokens.{number}" for number in range(max(1, tokens))]
        return [name if "mod_embed" in name else f"predictor_{name}"]

    return load_mapped_weights(predictor, weights, layout, where, {"mask_embed": (max(1, tokens), 1, width)})


def _infer_uniform_power(
    table: Tensor | None, settings: dict[str, Any], width: int, tubelet: int, patch: int, where: str
) -> bool:
    """How the channels of sincos positions are shared among the axes, which their published table tells.

    A network with rope may have a table too, which it does not use.
    """
    if settings["positions"] == "rope":
        return False
    height, columns = settings["image_size"]
    grid = (settings["frames"] // tubelet, height // patch, columns // patch)
    for uniform in (True, False):
        made = PositionEncoding("sincos", width, 1, uniform_power=uniform).added(grid, torch.zeros(1))
        assert made is not None
        if table is not None and table.shape[1:] == made.shape and (table[0] - made).abs().max() < 1e-3:
            return uniform
    has = "missing" if table is None else f"of shape {list(table.shape)}"
    raise PretrainedWeightsError(
        f"{where}: its pos_embed is {has}, not the sines and cosines of {settings['frames']} frames of "
        f"{height}x{columns}: say positions, image_size and frames as it was trained"
    )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise PretrainedWeightsError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(checkpoint, dict):
        raise PretrainedWeightsError(f"{path}: holds a {type(checkpoint).__name__} and no checkpoint")
    return checkpoint


def _strip_wrapper_prefixes(weights: object, where: str) -> StateDict:
    """Weights without the names of what they were wrapped in for training."""
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise PretrainedWeightsError(f"{where}: there are no weights of that name in it")
    return {re.sub(r"^((module|backbone)\.)+", "", key): weight for key, weight in weights.items()}
