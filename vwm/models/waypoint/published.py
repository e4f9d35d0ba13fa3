"""Load Waypoint 1 from its published files: the transformer and its settings, and the autoencoder's two files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml

from vwm.core.family import PublishedWorld
from vwm.core.published_files import as_state_dict, find_published_file, read_published_weights
from vwm.core.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    count_numbered_layers,
    get_weight,
    load_mapped_weights,
)
from vwm.models.waypoint.autoencoder import WaypointAutoencoder, fold_weight_norm
from vwm.models.waypoint.network import WaypointDiT
from vwm.models.waypoint.simulator import WaypointSimulator, keyboard_and_mouse

CONFIG_FILE = "config.yaml"
MODEL_FILE = "model.safetensors"
PROMPT_FILE = "prompt.safetensors"
MAX_CONFIG_BYTES = 2**20
SUPPORTED = {
    "ctrl_conditioning": ("mlp_fusion",),
    "prompt_conditioning": ("cross_attention", None),
    "noise_conditioning": ("wan",),
    "rope_impl": ("ortho",),
    "value_residual": (False, None),
    "causal": (True,),
}
"""Settings that have other values in other models of the authors."""
_MODULATION = re.compile(r"transformer\.blocks\.\d+\.cond_head\.cond_proj\.(\d)\.weight")
_UNUSED = re.compile(r"(ctrl_cfg|prompt_cfg)\.null_emb|conv_out_logvar\..*")
"""Weights of the training: of hidden conditions, and of the autoencoder's variance."""


def load_waypoint(source: Path) -> PublishedWorld:
    """Load a world.

    Args:
        source: folder with the files. ``prompt.safetensors`` with the tensor ``prompt`` [tokens, width], the embedding
            of a text, is optional; without it, no text is read.

    Raises:
        PretrainedWeightsError: a file is missing or broken, or weights are missing, of another shape or not used.
    """
    settings = _read_config(source / CONFIG_FILE)
    dynamics = load_waypoint_dynamics(source, settings)
    simulator = WaypointSimulator(
        load_waypoint_autoencoder(source),
        dynamics,
        keyboard_and_mouse(),
        fps=float(settings.get("base_fps", 60)),
        context_frames=1,
        title="Waypoint 1",
    )
    origin = "Weights of Waypoint 1 by Overworld, published as Overworld/Waypoint-1-Small on the Hugging Face Hub."
    return PublishedWorld(simulator, license="apache-2.0", origin=origin)


def load_waypoint_dynamics(source: Path, settings: dict[str, Any]) -> WaypointDiT:
    """Load the transformer. Raises PretrainedWeightsError, see ``load_waypoint``."""
    file = find_published_file(source, (MODEL_FILE,))
    where = str(file)
    weights = _share_modulation(as_state_dict(read_published_weights(file), where), where)
    heads = _number(settings, "n_heads")
    patch = settings.get("patch") or [1, 1]
    stride = _number(settings, "global_pinned_dilation")
    prompt = _read_prompt(source / PROMPT_FILE, settings)
    network = WaypointDiT(
        grid=(_number(settings, "height") * patch[0], _number(settings, "width") * patch[1]),
        channels=_number(settings, "channels"),
        patch_size=patch[0],
        width=_number(settings, "d_model"),
        depth=count_numbered_layers(weights, "transformer.blocks"),
        heads=heads,
        kv_heads=int(settings.get("n_kv_heads") or heads),
        mlp_ratio=_number(settings, "mlp_ratio"),
        buttons=_number(settings, "n_buttons"),
        control_every=_number(settings, "ctrl_conditioning_period"),
        prompt_every=int(settings.get("prompt_conditioning_period") or 1),
        prompt_width=0 if prompt is None else prompt.shape[1],
        prompt_tokens=0 if prompt is None else prompt.shape[0],
        local_slots=_number(settings, "local_window"),
        global_slots=_number(settings, "global_window") // stride,
        global_stride=stride,
        global_every=_number(settings, "global_attn_period"),
        global_offset=int(settings.get("global_attn_offset") or 0),
        gated=bool(settings.get("gated_attn")),
        sigmas=tuple(abs(float(sigma)) for sigma in settings["scheduler_sigmas"]),
    )
    if prompt is not None:
        weights["prompt"] = prompt
    return load_mapped_weights(network, weights, lambda name: [name], where)


def load_waypoint_autoencoder(source: Path) -> WaypointAutoencoder:
    """Load the autoencoder, from the folder or from ``ae`` in it. Raises PretrainedWeightsError."""
    folder = source / "ae" if (source / "ae" / "encoder.safetensors").is_file() else source
    weights: StateDict = {}
    for part in ("encoder", "decoder"):
        file = find_published_file(folder, (f"{part}.safetensors",))
        read = fold_weight_norm(as_state_dict(read_published_weights(file), str(file)))
        weights |= {f"{part}.{name}": value for name, value in read.items() if not _UNUSED.fullmatch(name)}
    where = str(folder)
    widths, blocks = {}, {}
    for part, _ending in (("encoder", "down"), ("decoder", "up")):
        count = count_numbered_layers(weights, f"{part}.blocks")
        inside = [
            get_weight(weights, f"{part}.blocks.{stage}.blocks.0.conv1.weight", where, axes=4).shape[1]
            for stage in range(count)
        ]
        blocks[part] = [count_numbered_layers(weights, f"{part}.blocks.{stage}.blocks") for stage in range(count)]
        last = "conv_out" if part == "encoder" else "conv_in"
        end = get_weight(weights, f"{part}.{last}.proj.weight", where, axes=4).shape[1 if part == "encoder" else 0]
        if part == "decoder":
            inside, blocks[part] = inside[::-1], blocks[part][::-1]
        widths[part] = (*inside, end)
    colors = get_weight(weights, "encoder.conv_in.proj.weight", where, axes=4).shape[1]
    network = WaypointAutoencoder(
        colors=colors,
        channels=get_weight(weights, "decoder.conv_in.proj.weight", where, axes=4).shape[1],
        encoder_widths=widths["encoder"],
        encoder_blocks=tuple(blocks["encoder"]),
        decoder_widths=widths["decoder"],
        decoder_blocks=tuple(blocks["decoder"]),
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def _share_modulation(weights: StateDict, where: str) -> StateDict:
    """Replace the copies of the modulation in all blocks by one."""
    shared = {}
    for name, value in weights.items():
        matched = _MODULATION.fullmatch(name)
        if matched is None:
            if not _UNUSED.fullmatch(name):
                shared[name] = value
            continue
        own = f"modulation.{matched[1]}.weight"
        if own in shared and not torch.equal(shared[own], value):
            raise PretrainedWeightsError(f"{where}: {name} differs from that of another block, and they are shared")
        shared[own] = value
    return shared


def _read_config(file: Path) -> dict[str, Any]:
    """Read the settings, and refuse those of other models. Raises PretrainedWeightsError."""
    if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
        raise PretrainedWeightsError(f"{file}: there is no such file, or it is no config: download it into this folder")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PretrainedWeightsError(f"{file}: cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise PretrainedWeightsError(f"{file}: holds no settings")
    for name, allowed in SUPPORTED.items():
        if settings.get(name) not in allowed:
            raise PretrainedWeightsError(f"{file}: {name}={settings.get(name)!r} is not supported, only {allowed[0]!r}")
    sigmas = settings.get("scheduler_sigmas")
    if not isinstance(sigmas, list) or not all(isinstance(sigma, float | int) for sigma in sigmas):
        raise PretrainedWeightsError(f"{file}: scheduler_sigmas must be a list of numbers, got {sigmas!r}")
    return settings


def _number(settings: dict[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise PretrainedWeightsError(f"{CONFIG_FILE}: {name} must be a whole number above 0, got {value!r}")
    return value


def _read_prompt(file: Path, settings: dict[str, Any]) -> torch.Tensor | None:
    """Return the embedding of the text, zeros where there is none; None for networks without prompts."""
    if settings.get("prompt_conditioning") is None:
        return None
    width = _number(settings, "prompt_embedding_dim")
    if not file.is_file():
        return torch.zeros(1, width)
    prompt = get_weight(read_published_weights(file), "prompt", str(file))
    if prompt.shape[1] != width:
        raise PretrainedWeightsError(f"{file}: prompt must be [tokens, {width}], got {list(prompt.shape)}")
    return prompt
