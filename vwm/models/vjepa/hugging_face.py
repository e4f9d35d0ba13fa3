"""Load and save V-JEPA 2 in the format of Hugging Face's ``VJEPA2Model`` and ``VJEPA2ForVideoClassification``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vwm.core.atomic_files import atomic_folder
from vwm.core.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    export_mapped_weights,
    get_weight,
    infer_mlp_ratio,
    load_mapped_weights,
)
from vwm.models.vjepa.attentive_probe import AttentiveClassifier
from vwm.models.vjepa.masked_predictor import MaskedPredictor
from vwm.models.vjepa.official_weights import DEFAULT_MASK_TOKEN, IMAGENET_MEAN, IMAGENET_STD, PretrainedVJEPA
from vwm.models.vjepa.video_encoder import VideoEncoder
from vwm.models.vjepa.vit_block import VIT_NORM_EPS

HF_CONFIG_FILE = "config.json"
HF_WEIGHTS_FILE = "model.safetensors"
HF_PREPROCESSOR_FILE = "video_preprocessor_config.json"
HF_FIXED_SETTINGS = {"hidden_act": "gelu", "layer_norm_eps": VIT_NORM_EPS, "in_chans": 3, "qkv_bias": True}
"""Settings of Hugging Face with the only supported values, which all published models have."""
HF_IMPLIED_SETTINGS = {
    "positions": "rope",
    "tiled_rope": True,
    "mlp": "gelu",
    "modality_embeddings": False,
    "rope_reference_grid": None,
}
"""Settings of vwm that the format cannot express, with the values of all its models.

Without ``tiled_rope``, the two channels of a pair have equal frequencies, as a rotation has. The format has different
ones, which no order of the channels makes equal: such weights cannot be expressed in a network of the same width.
"""
TILED_ROPE_ADVICE = (
    "no change of the weights makes the two equal: train with vwm fit ... "
    "--model.init_args.encoder.init_args.tiled_rope true --model.init_args.predictor.init_args.tiled_rope true"
)
HF_SHARED_KEYS = {"frames": "frames_per_clip", "tubelet": "tubelet_size", "patch_size": "patch_size"}
HF_ENCODER_KEYS = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
HF_PREDICTOR_KEYS = {
    "width": "pred_hidden_size",
    "depth": "pred_num_hidden_layers",
    "heads": "pred_num_attention_heads",
    "num_mask_tokens": "pred_num_mask_tokens",
}


def load_hugging_face_vjepa(
    folder: str | os.PathLike[str], mask_token_index: int = DEFAULT_MASK_TOKEN
) -> PretrainedVJEPA:
    """Load a folder of ``VJEPA2Model`` or ``VJEPA2ForVideoClassification``.

    Args:
        folder: folder with ``config.json`` and safetensors.
        mask_token_index: default mask token of the predictor; see ``load_official_vjepa``.

    Raises:
        PretrainedWeightsError: the folder does not exist, or has another model or an unsupported setting; or weights
            are missing, have another shape or are not used.
    """
    folder = Path(folder)
    config, weights = _read_json(folder / HF_CONFIG_FILE), _read_weights(folder)
    if config.get("model_type") != "vjepa2":
        raise PretrainedWeightsError(
            f"{folder / HF_CONFIG_FILE}: model_type is {config.get('model_type')!r}, not 'vjepa2'"
        )
    for name, value in HF_FIXED_SETTINGS.items():
        if config.get(name, value) != value:
            raise PretrainedWeightsError(
                f"{folder / HF_CONFIG_FILE}: {name} is {config[name]!r}; only {value!r} is supported"
            )
    has_classifier = "classifier.weight" in weights
    if has_classifier:
        weights = {key.removeprefix("vjepa2."): weight for key, weight in weights.items()}
    try:
        encoder, predictor = _build_networks(config, weights, mask_token_index, folder)
        probe = None
        if has_classifier:
            classes, width = get_weight(weights, "classifier.weight", str(folder)).shape
            probe = AttentiveClassifier(
                width=width,
                classes=classes,
                heads=encoder.config.heads,
                depth=config["num_pooler_layers"] + 1,
                norm_eps=VIT_NORM_EPS,
            )
    except KeyError as error:
        raise PretrainedWeightsError(f"{folder / HF_CONFIG_FILE}: the setting {error} is missing") from error
    parts: dict[str, StateDict] = {"encoder": {}, "predictor": {}, "rest": {}}
    for key, weight in weights.items():
        part = key.split(".")[0]
        parts[part if part in parts else "rest"][key] = weight
    load_mapped_weights(encoder, parts["encoder"], hf_encoder_weight_names, str(folder))
    load_mapped_weights(
        predictor, parts["predictor"], hf_predictor_weight_names, str(folder), _hf_mask_token_shape(predictor)
    )
    if probe is not None:
        load_mapped_weights(probe, parts["rest"], hf_probe_weight_names, str(folder))
    elif parts["rest"]:
        raise PretrainedWeightsError(f"{folder}: not used: {', '.join(sorted(parts['rest']))}")
    return PretrainedVJEPA(encoder, predictor, probe)


def save_hugging_face_vjepa(
    folder: str | os.PathLike[str],
    encoder: VideoEncoder,
    predictor: MaskedPredictor,
    classifier: AttentiveClassifier | None = None,
) -> None:
    """Write a folder that ``VJEPA2Model.from_pretrained`` opens; with a classifier, ``VJEPA2ForVideoClassification``.

    Args:
        folder: the new folder.
        encoder, predictor: the networks.
        classifier: a probe of the encoder's features, or None.

    Raises:
        PretrainedWeightsError: the folder exists, or the format cannot express a setting; nothing is written.
    """
    folder = Path(folder)
    if folder.exists():
        raise PretrainedWeightsError(f"{folder} exists: choose another folder")
    config = _hf_config(encoder, predictor) | ({} if classifier is None else _hf_probe_config(encoder, classifier))
    weights = export_mapped_weights(encoder, hf_encoder_weight_names) | export_mapped_weights(
        predictor, hf_predictor_weight_names, _hf_mask_token_shape(predictor)
    )
    if classifier is not None:
        weights = {f"vjepa2.{key}": weight for key, weight in weights.items()} | export_mapped_weights(
            classifier, hf_probe_weight_names
        )
    pixels = {"image_mean": list(encoder.config.pixel_mean), "image_std": list(encoder.config.pixel_std)}
    processor = {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": config["crop_size"], **pixels}
    with atomic_folder(folder) as temporary:
        weights = {key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
        save_file(weights, temporary / HF_WEIGHTS_FILE, metadata={"format": "pt"})
        for name, content in ((HF_CONFIG_FILE, config), (HF_PREPROCESSOR_FILE, processor)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n")


def hf_encoder_weight_names(name: str) -> list[str]:
    """Name map of the encoder; see ``weight_mapping``."""
    name = name.replace("patch_embed.", "encoder.embeddings.patch_embeddings.")
    return _hf_attention_names(re.sub(r"^norm\.", "encoder.layernorm.", re.sub(r"^blocks\.", "encoder.layer.", name)))


def hf_predictor_weight_names(name: str) -> list[str]:
    """Name map of the predictor; see ``weight_mapping``."""
    for pattern, replacement in {
        r"^blocks\.": "layer.",
        r"^norm\.": "layernorm.",
        r"^embed\.": "embeddings.predictor_embeddings.",
        r"^mask_embed$": "embeddings.mask_tokens",
    }.items():
        name = re.sub(pattern, replacement, name)
    return _hf_attention_names(f"predictor.{name}")


def hf_probe_weight_names(name: str) -> list[str]:
    """Name map of the attentive classifier; see ``weight_mapping``."""
    name = name.replace("linear.", "classifier.").replace(".norm", ".layer_norm")
    name = name.replace(".blocks.", ".self_attention_layers.").replace(".attn.proj.", ".self_attn.out_proj.")
    name = name.replace(".cross_attention_block.", ".cross_attention_layer.").replace(
        ".xattn.q.", ".cross_attn.q_proj."
    )
    if ".xattn.kv." in name:
        return [name.replace(".xattn.kv.", f".cross_attn.{part}_proj.") for part in "kv"]
    if ".attn.qkv." in name:
        return [name.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv"]
    return [name]


def _hf_attention_names(name: str) -> list[str]:
    if ".attn.qkv." in name:
        return [name.replace(".attn.qkv.", f".attention.{part}.") for part in ("query", "key", "value")]
    return [name.replace(".attn.", ".attention.")]


def _hf_mask_token_shape(predictor: MaskedPredictor) -> dict[str, tuple[int, ...]]:
    num_mask_tokens, width = predictor.mask_embed.shape
    return {"mask_embed": (num_mask_tokens, 1, 1, width)}


def _build_networks(
    config: dict[str, Any], weights: StateDict, mask_token_index: int, folder: Path
) -> tuple[VideoEncoder, MaskedPredictor]:
    """Build the networks of a config, without loading their weights. Raises KeyError for a missing setting."""
    pixels = _read_json(folder / HF_PREPROCESSOR_FILE) if (folder / HF_PREPROCESSOR_FILE).is_file() else {}
    shared: dict[str, Any] = {name: config[key] for name, key in HF_SHARED_KEYS.items()}
    shared |= {"image_size": (config["crop_size"], config["crop_size"]), "tiled_rope": True}
    encoder = VideoEncoder(
        **shared,
        **{name: config[key] for name, key in HF_ENCODER_KEYS.items()},
        mlp_ratio=infer_mlp_ratio(weights, "encoder.layer.0", str(folder)),
        pixel_mean=tuple(pixels.get("image_mean", IMAGENET_MEAN)),
        pixel_std=tuple(pixels.get("image_std", IMAGENET_STD)),
    )
    predictor = MaskedPredictor(
        **shared,
        **{name: config[key] for name, key in HF_PREDICTOR_KEYS.items()},
        encoder_width=encoder.width,
        mlp_ratio=infer_mlp_ratio(weights, "predictor.layer.0", str(folder)),
        mask_token_index=mask_token_index % config[HF_PREDICTOR_KEYS["num_mask_tokens"]],
    )
    return encoder, predictor


def _hf_config(encoder: VideoEncoder, predictor: MaskedPredictor) -> dict[str, Any]:
    settings, predictor_settings = encoder.config, predictor.config
    side = settings.image_size[0]
    _require_settings(encoder, HF_IMPLIED_SETTINGS | {"image_size": (side, side), "feature_layers": ()})
    shared = {name: settings[name] for name in (*HF_SHARED_KEYS, "image_size")} | {"encoder_width": settings.width}
    _require_settings(predictor, HF_IMPLIED_SETTINGS | shared | {"num_feature_layers": 1, "predict_context": False})
    if predictor.proj.out_features != settings.width:
        raise PretrainedWeightsError(
            f"the predictor's features are {predictor.proj.out_features} wide, not {settings.width}"
        )
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "crop_size": side,
        **HF_FIXED_SETTINGS,
        **{key: settings[name] for name, key in (HF_SHARED_KEYS | HF_ENCODER_KEYS).items()},
        **{key: predictor_settings[name] for name, key in HF_PREDICTOR_KEYS.items()},
        "mlp_ratio": settings.mlp_ratio,
        "pred_mlp_ratio": predictor_settings.mlp_ratio,
    }


def _hf_probe_config(encoder: VideoEncoder, probe: AttentiveClassifier) -> dict[str, Any]:
    _require_settings(
        probe, {"width": encoder.width, "heads": encoder.config.heads, "norm_eps": VIT_NORM_EPS, "mlp_ratio": 4.0}
    )
    labels = [f"LABEL_{number}" for number in range(probe.config.classes)]
    return {
        "architectures": ["VJEPA2ForVideoClassification"],
        "num_pooler_layers": probe.config.depth - 1,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _require_settings(network: VideoEncoder | MaskedPredictor | AttentiveClassifier, settings: dict[str, Any]) -> None:
    """Raise PretrainedWeightsError if a network has another setting."""
    for name, value in settings.items():
        found = network.config[name]
        if (tuple(found) if isinstance(found, list) else found) != (tuple(value) if isinstance(value, list) else value):
            hint = f" ({TILED_ROPE_ADVICE})" if name == "tiled_rope" else ""
            raise PretrainedWeightsError(
                f"{type(network).__name__} has {name}={found!r}: the format of Hugging Face only supports "
                f"{value!r}{hint}"
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise PretrainedWeightsError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise PretrainedWeightsError(f"{file}: not a JSON object")
    return content


def _read_weights(folder: Path) -> StateDict:
    """Read all weights of a folder, from one file or from several files named by an index."""
    index = folder / f"{HF_WEIGHTS_FILE}.index.json"
    files = [HF_WEIGHTS_FILE]
    if index.is_file():
        files = sorted({Path(name).name for name in _read_json(index).get("weight_map", {}).values()})
    weights: StateDict = {}
    for name in files:
        try:
            weights |= load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise PretrainedWeightsError(f"{folder / name}: cannot be read ({error})") from error
    return weights
