"""Activations that are recomputed in the backward pass to save memory (activation checkpointing, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vwm.core.blocks import find_blocks

Recomputation = Literal["none", "selective", "full"]
"""What a block recomputes: nothing; all but the outputs of matrix products, convolutions and attention, which are few
to keep and slow to compute; or everything."""

KEPT_OPERATORS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::_scaled_mm", "aten::convolution",
    "mkldnn::_linear_pointwise", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
"""Operators whose outputs ``selective`` keeps."""


def recompute_blocks(network: nn.Module, recomputation: Recomputation) -> None:
    """Let the blocks of a network recompute activations in training; gradients and the names of weights stay the same.

    To be called before the blocks are compiled: a compiled block contains its recomputation.
    """
    for block in find_blocks(network):
        block.__dict__.pop("forward", None)
        if recomputation != "none":
            forward = _recompute_selectively if recomputation == "selective" else _recompute_fully
            block.forward = MethodType(forward, block)  # a method, which a copy of the block binds to itself


@contextmanager
def without_recomputation(network: nn.Module) -> Iterator[None]:
    """Let the blocks keep all activations inside the with-statement."""
    removed = {block: block.__dict__.pop("forward") for block in find_blocks(network) if "forward" in block.__dict__}
    try:
        yield
    finally:
        for block, forward in removed.items():
            block.forward = forward


def _recompute_fully(block: nn.Module, *inputs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)


def _recompute_selectively(block: nn.Module, *inputs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Policy of ``selective``."""
    is_kept = isinstance(operator, torch._ops.OpOverload) and operator.name().partition(".")[0] in KEPT_OPERATORS
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
