"""V-JEPA 2 as Hugging Face's ``VJEPA2Model`` and ``VJEPA2ForVideoClassification`` keep it: read and written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vwm.data.folders import written_aside
from vwm.vjepa.attentive import AttentiveClassifier
from vwm.vjepa.block import NORM_EPS
from vwm.vjepa.encoder import VideoEncoder
from vwm.vjepa.layout import PublishedError, Weights, fill, get, lay_out, mlp_ratio
from vwm.vjepa.predictor import MaskedPredictor
from vwm.vjepa.published import IMAGENET_MEAN, IMAGENET_STD, READ_MASK_TOKEN, Published

CONFIG, WEIGHTS, PIXELS = "config.json", "model.safetensors", "video_preprocessor_config.json"
FIXED = {"hidden_act": "gelu", "layer_norm_eps": NORM_EPS, "in_chans": 3, "qkv_bias": True}
"""Settings that the layout could have otherwise, but no published model has."""
ALWAYS = {
    "positions": "rope",
    "tiled_rope": True,
    "mlp": "gelu",
    "modalities": False,
    "rope_spread": None,
    "levels": (),
}
"""Settings of ours that the layout has no word for: all its models have these."""
SHARED = {"frames": "frames_per_clip", "tubelet": "tubelet_size", "patch_size": "patch_size"}
ENCODER = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
PREDICTOR = {
    "width": "pred_hidden_size",
    "depth": "pred_num_hidden_layers",
    "heads": "pred_num_attention_heads",
    "mask_tokens": "pred_num_mask_tokens",
}


def load_hugging_face(folder: str | os.PathLike[str], mask_token: int = READ_MASK_TOKEN) -> Published:
    """Read a folder of ``VJEPA2Model`` or ``VJEPA2ForVideoClassification``.

    Args:
        folder: with ``config.json`` and safetensors.
        mask_token: the predictor's default one; see ``load_official``.

    Raises:
        PublishedError: no such folder, another model's, or a setting that is not known here; a key is missing,
            misshapen or without a use.
    """
    folder = Path(folder)
    config, weights = _read_json(folder / CONFIG), _read_weights(folder)
    if config.get("model_type") != "vjepa2":
        raise PublishedError(f"{folder / CONFIG}: model_type is {config.get('model_type')!r}, not 'vjepa2'")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise PublishedError(f"{folder / CONFIG}: {name} is {config[name]!r}; only {value!r} is known here")
    classifies = "classifier.weight" in weights
    if classifies:
        weights = {key.removeprefix("vjepa2."): weight for key, weight in weights.items()}
    try:
        encoder, predictor = _networks(config, weights, mask_token, folder)
        probe = None
        if classifies:
            classes, width = get(weights, "classifier.weight", str(folder)).shape
            depth = config["num_pooler_layers"] + 1
            probe = AttentiveClassifier(width, classes, encoder.config.heads, depth, norm_eps=NORM_EPS)
    except KeyError as error:
        raise PublishedError(f"{folder / CONFIG}: does not say {error}") from error
    parts: dict[str, Weights] = {"encoder": {}, "predictor": {}, "rest": {}}
    for key, weight in weights.items():
        part = key.split(".")[0]
        parts[part if part in parts else "rest"][key] = weight
    fill(encoder, parts["encoder"], encoder_layout, str(folder))
    fill(predictor, parts["predictor"], predictor_layout, str(folder), _mask_shape(predictor))
    if probe is not None:
        fill(probe, parts["rest"], probe_layout, str(folder))
    elif parts["rest"]:
        raise PublishedError(f"{folder}: without a use: {', '.join(sorted(parts['rest']))}")
    return Published(encoder, predictor, probe)


def save_hugging_face(
    folder: str | os.PathLike[str],
    encoder: VideoEncoder,
    predictor: MaskedPredictor,
    classifier: AttentiveClassifier | None = None,
) -> None:
    """Write a folder that ``VJEPA2Model.from_pretrained`` opens; with a classifier, ``VJEPA2ForVideoClassification``.

    Args:
        folder: to make.
        encoder, predictor: the networks; they stay as they are.
        classifier: a probe of the encoder's features.

    Raises:
        PublishedError: the folder exists, or a setting has no place in that layout; nothing is written.
    """
    folder = Path(folder)
    if folder.exists():
        raise PublishedError(f"{folder} exists: choose another folder")
    config = _config(encoder, predictor) | ({} if classifier is None else _probe_config(encoder, classifier))
    weights = lay_out(encoder, encoder_layout) | lay_out(predictor, predictor_layout, _mask_shape(predictor))
    if classifier is not None:
        weights = {f"vjepa2.{key}": weight for key, weight in weights.items()} | lay_out(classifier, probe_layout)
    pixels = {"image_mean": list(encoder.config.pixel_mean), "image_std": list(encoder.config.pixel_std)}
    processor = {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": config["crop_size"], **pixels}
    with written_aside(folder) as aside:
        weights = {key: weight.detach().cpu().contiguous() for key, weight in weights.items()}
        save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
        for name, content in ((CONFIG, config), (PIXELS, processor)):
            (aside / name).write_text(json.dumps(content, indent=2) + "\n")


def encoder_layout(name: str) -> list[str]:
    """Names of an encoder's weight there."""
    name = name.replace("patch_embed.", "encoder.embeddings.patch_embeddings.")
    return _blocks(re.sub(r"^norm\.", "encoder.layernorm.", re.sub(r"^blocks\.", "encoder.layer.", name)))


def predictor_layout(name: str) -> list[str]:
    """Names of a predictor's weight there."""
    for here, there in {
        r"^blocks\.": "layer.",
        r"^norm\.": "layernorm.",
        r"^embed\.": "embeddings.predictor_embeddings.",
        r"^mask_embed$": "embeddings.mask_tokens",
    }.items():
        name = re.sub(here, there, name)
    return _blocks(f"predictor.{name}")


def probe_layout(name: str) -> list[str]:
    """Names of an attentive classifier's weight there."""
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


def _blocks(name: str) -> list[str]:
    if ".attn.qkv." in name:
        return [name.replace(".attn.qkv.", f".attention.{part}.") for part in ("query", "key", "value")]
    return [name.replace(".attn.", ".attention.")]


def _mask_shape(predictor: MaskedPredictor) -> dict[str, tuple[int, ...]]:
    tokens, width = predictor.mask_embed.shape
    return {"mask_embed": (tokens, 1, 1, width)}


def _networks(
    config: dict[str, Any], weights: Weights, mask_token: int, folder: Path
) -> tuple[VideoEncoder, MaskedPredictor]:
    """The networks that a config describes, not yet filled. Raises KeyError where it does not."""
    pixels = _read_json(folder / PIXELS) if (folder / PIXELS).is_file() else {}
    shared: dict[str, Any] = {here: config[there] for here, there in SHARED.items()}
    shared |= {"image_size": (config["crop_size"], config["crop_size"]), "tiled_rope": True}
    encoder = VideoEncoder(
        **shared,
        **{here: config[there] for here, there in ENCODER.items()},
        mlp_ratio=mlp_ratio(weights, "encoder.layer.0", str(folder)),
        pixel_mean=tuple(pixels.get("image_mean", IMAGENET_MEAN)),
        pixel_std=tuple(pixels.get("image_std", IMAGENET_STD)),
    )
    predictor = MaskedPredictor(
        **shared,
        **{here: config[there] for here, there in PREDICTOR.items()},
        encoder_width=encoder.width,
        mlp_ratio=mlp_ratio(weights, "predictor.layer.0", str(folder)),
        mask_token=mask_token % config[PREDICTOR["mask_tokens"]],
    )
    return encoder, predictor


def _config(encoder: VideoEncoder, predictor: MaskedPredictor) -> dict[str, Any]:
    ours, theirs = encoder.config, predictor.config
    side = ours.image_size[0]
    _require(encoder, ALWAYS | {"image_size": (side, side), "levels": ()})
    same = {name: ours[name] for name in (*SHARED, "image_size")} | {"encoder_width": ours.width}
    _require(predictor, ALWAYS | same | {"levels": 1, "context_head": False})
    if predictor.proj.out_features != ours.width:
        raise PublishedError(f"the predictor's features are {predictor.proj.out_features} wide, not {ours.width}")
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "crop_size": side,
        **FIXED,
        **{there: ours[here] for here, there in (SHARED | ENCODER).items()},
        **{there: theirs[here] for here, there in PREDICTOR.items()},
        "mlp_ratio": ours.mlp_ratio,
        "pred_mlp_ratio": theirs.mlp_ratio,
    }


def _probe_config(encoder: VideoEncoder, probe: AttentiveClassifier) -> dict[str, Any]:
    _require(probe, {"width": encoder.width, "heads": encoder.config.heads, "norm_eps": NORM_EPS, "mlp_ratio": 4.0})
    labels = [f"LABEL_{number}" for number in range(probe.config.classes)]
    return {
        "architectures": ["VJEPA2ForVideoClassification"],
        "num_pooler_layers": probe.config.depth - 1,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _require(network: VideoEncoder | MaskedPredictor | AttentiveClassifier, settings: dict[str, Any]) -> None:
    """Raise PublishedError where a network has another setting."""
    for name, value in settings.items():
        has = network.config[name]
        if (tuple(has) if isinstance(has, list) else has) != (tuple(value) if isinstance(value, list) else value):
            raise PublishedError(
                f"{type(network).__name__} has {name}={has!r}: in Hugging Face's layout it can only be {value!r} here"
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise PublishedError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise PublishedError(f"{file}: holds no settings")
    return content


def _read_weights(folder: Path) -> Weights:
    """All weights of a folder, in one file or in several that an index names."""
    index, files = folder / f"{WEIGHTS}.index.json", [WEIGHTS]
    if index.is_file():
        files = sorted({Path(name).name for name in _read_json(index).get("weight_map", {}).values()})
    weights: Weights = {}
    for name in files:
        try:
            weights |= load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise PublishedError(f"{folder / name}: cannot be read ({error})") from error
    return weights
