"""Linear layers that multiply in float8 (torchao): large ones train faster, at the precision of 8 bits.

Weights stay in their own type and keep their names: a run may continue, and is exported, with or without float8.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from vwm.core.blocks import find_blocks

Float8Recipe = Literal["none", "tensorwise", "rowwise"]
"""How values are scaled to float8: by one factor a tensor, which is faster, or one a row, which is more exact."""

BY_FRAME = "modulation"
"""Layers of this name see one vector a frame, not one a token: too few rows to gain anything."""


def convert_to_float8(network: nn.Module, recipe: Float8Recipe, emulate: bool = False) -> int:
    """Let the large linear layers of a network's blocks multiply in float8, in place; return how many.

    The first and the last layer of a network lie outside of its blocks, and frozen layers gain too little: both stay
    as they are. To be called before the blocks are compiled, without which float8 is slower than bfloat16.

    Args:
        network: the network, or a whole training module.
        recipe: see ``Float8Recipe``.
        emulate: compute the values of float8 on any device, slowly.

    Raises:
        ValueError: torchao is missing, the GPU has no float8 products, or no layer is large enough.
    """
    if recipe == "none":
        return 0
    if find_spec("torchao") is None:
        raise ValueError(f"float8={recipe} requires torchao: pip install 'vwm[float8]', or set float8 to none")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    chosen = {
        layer
        for block in find_blocks(network)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] != BY_FRAME and _gains(layer, recipe)
    }
    if not chosen:
        raise ValueError(
            f"float8={recipe}: no trained linear layer of a block is large enough to gain from it (tensorwise: more "
            "than 1024 outputs or 4096 inputs; rowwise: more; both multiples of 16): set float8 to none"
        )
    # Masked clips have numbers of tokens that are no multiples of 16, which the gradients of weights are padded to.
    config = replace(Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True, emulate=emulate)
    convert_to_float8_training(network, config=config, module_filter_fn=lambda layer, name: layer in chosen)
    return len(chosen)


def check_float8_device(recipe: Float8Recipe, device: torch.device) -> None:
    """Raise ValueError where a device has no float8 products."""
    if recipe == "none":
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type} device"
        raise ValueError(
            f"float8={recipe} requires a GPU with float8 products (compute capability 8.9 or higher: H100, H200, "
            f"B200, L40S, RTX 4090), and this training runs on {name}: set float8 to none"
        )


def _gains(layer: nn.Linear, recipe: Float8Recipe) -> bool:
    """Whether a layer is fast in float8, by torchao's measurements on an H100 (its README and automatic filters)."""
    rows, columns = layer.weight.shape
    if not layer.weight.requires_grad or rows % 16 or columns % 16:
        return False
    if recipe == "tensorwise":
        return rows > 1024 or columns > 4096
    return rows > 2048 and columns > 1024 and (rows > 4096 or columns > 2048)
