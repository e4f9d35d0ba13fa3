"""Load Oasis 500M from its published files: ``oasis500m`` and ``vit-l-20``, as ``.safetensors`` or ``.pt``.

The weights have the names of ours. The files also store the frequencies of the rotary encodings, which are constants,
under one or several names; ours are computed.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from vwm.core.published_files import as_state_dict, find_published_file, read_published_weights
from vwm.core.weight_mapping import (
    PretrainedWeightsError,
    StateDict,
    count_numbered_layers,
    get_weight,
    load_mapped_weights,
)
from vwm.models.oasis.network import OasisDiT, rotary_frequencies
from vwm.models.oasis.vit_vae import OasisViTVAE

DYNAMICS_FILES = ("oasis500m.safetensors", "oasis500m.pt")
TOKENIZER_FILES = ("vit-l-20.safetensors", "vit-l-20.pt")
IMAGE_SIZE = (360, 640)
HEAD_CHANNELS = 64
"""Channels of an attention head of both networks; like the size of the frames, the weights do not determine it."""
_FREQUENCIES = re.compile(r"(?:blocks\.\d+\.)?(s|t|spatial|temporal)(?:_attn)?(?:\.|_)rotary_emb\.freqs")
"""Frequencies of the rotary encodings of places and of time, which all blocks share."""


def load_oasis(source: Path, image_size: tuple[int, int] = IMAGE_SIZE) -> tuple[OasisViTVAE, OasisDiT]:
    """Load both networks.

    Args:
        source: folder with the two files.
        image_size: (H, W) of the frames in pixels.

    Raises:
        PretrainedWeightsError: a file is missing or broken, or weights are missing, of another shape or not used.
    """
    tokenizer = load_oasis_tokenizer(find_published_file(source, TOKENIZER_FILES), image_size)
    return tokenizer, load_oasis_dynamics(find_published_file(source, DYNAMICS_FILES), tokenizer.grid)


def load_oasis_tokenizer(file: Path, image_size: tuple[int, int] = IMAGE_SIZE) -> OasisViTVAE:
    """Load the autoencoder. Raises PretrainedWeightsError, see ``load_oasis``."""
    where = str(file)
    weights = as_state_dict(read_published_weights(file), where)
    width, _, patch, _ = get_weight(weights, "patch_embed.proj.weight", where, axes=4).shape
    network = OasisViTVAE(
        image_size=image_size,
        patch_size=patch,
        channels=get_weight(weights, "post_quant_conv.weight", where).shape[1],
        width=width,
        heads=max(1, width // HEAD_CHANNELS),
        encoder_depth=count_numbered_layers(weights, "encoder"),
        decoder_depth=count_numbered_layers(weights, "decoder"),
    )
    return load_mapped_weights(network, weights, lambda name: [name], where)


def load_oasis_dynamics(file: Path, grid: tuple[int, int]) -> OasisDiT:
    """Load the diffusion transformer for latents (h, w). Raises PretrainedWeightsError, see ``load_oasis``."""
    where = str(file)
    weights = as_state_dict(read_published_weights(file), where)
    width, channels, patch, _ = get_weight(weights, "x_embedder.proj.weight", where, axes=4).shape
    network = OasisDiT(
        grid=grid,
        channels=channels,
        patch_size=patch,
        width=width,
        depth=count_numbered_layers(weights, "blocks"),
        heads=max(1, width // HEAD_CHANNELS),
        action_dims=get_weight(weights, "external_cond.weight", where).shape[1],
    )
    return load_mapped_weights(network, _drop_frequencies(weights, network, where), lambda name: [name], where)


def _drop_frequencies(weights: StateDict, network: OasisDiT, where: str) -> StateDict:
    """Remove the stored frequencies, after comparing them with the network's."""
    spatial, temporal = rotary_frequencies(network.head_width)
    others = {}
    for key, value in weights.items():
        matched = _FREQUENCIES.fullmatch(key)
        if matched is None:
            others[key] = value
            continue
        expected = spatial if matched[1].startswith("s") else temporal
        if value.shape != expected.shape or not torch.allclose(value.float(), expected, rtol=1e-3):
            raise PretrainedWeightsError(f"{where}: {key} does not hold the {len(expected)} frequencies of Oasis")
    return others
