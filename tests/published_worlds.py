"""Small worlds of the families whose weights others publish, and files in the published layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.models.oasis.actions import minecraft_actions
from vwm.models.oasis.network import OasisDiT, rotary_frequencies
from vwm.models.oasis.sampling import OasisSampling
from vwm.models.oasis.simulator import OasisSimulator
from vwm.models.oasis.vit_vae import OasisViTVAE

OASIS_IMAGE = (16, 32)


def oasis_networks() -> tuple[OasisViTVAE, OasisDiT]:
    """Networks for frames of 16x32 pixels, with one head each, and a window of 4 frames."""
    torch.manual_seed(5)
    tokenizer = OasisViTVAE(OASIS_IMAGE, patch_size=4, channels=4, width=16, heads=1, encoder_depth=1, decoder_depth=2)
    return tokenizer, OasisDiT(tokenizer.grid, channels=4, patch_size=2, width=16, depth=2, heads=1, window=4)


def oasis_world() -> OasisSimulator:
    """An Oasis of 16x32 pixels."""
    return OasisSimulator(
        *oasis_networks(), minecraft_actions(), sampling=OasisSampling(steps=2), context_frames=2, title="noise"
    )


def oasis_layout(tokenizer: OasisViTVAE, dynamics: OasisDiT) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The contents of ``vit-l-20`` and ``oasis500m`` with these weights, frequencies included."""
    weights = dict(dynamics.state_dict())
    for axis, frequencies in zip(("spatial", "temporal"), rotary_frequencies(dynamics.head_width), strict=True):
        weights[f"{axis}_rotary_emb.freqs"] = frequencies
        for block in range(len(dynamics.blocks)):
            weights[f"blocks.{block}.{axis[0]}_attn.rotary_emb.freqs"] = frequencies
    return dict(tokenizer.state_dict()), weights
