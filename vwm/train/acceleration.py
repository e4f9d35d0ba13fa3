"""What ``vwm fit`` does to train at the speed of its device: precision, float8, compilation, recomputation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from torch import nn

from vwm.core.blocks import compile_blocks, resolve_compile
from vwm.core.devices import allow_tf32
from vwm.nn.float8 import Float8Recipe, check_float8_device, convert_to_float8
from vwm.nn.recomputation import Recomputation, recompute_blocks
from vwm.runs.options import add_compile_option


def add_acceleration_options(parser: ArgumentParser) -> None:
    """Add ``--compile``, ``--gradient_checkpointing`` and ``--float8``; the first two are also switches."""
    add_compile_option(parser, "torch.compile every block; auto compiles on CUDA")
    parser.add_argument(
        "--gradient_checkpointing",
        type=Recomputation | bool,
        nargs="?",
        const=True,
        default="none",
        help="save memory: selective recomputes all but products and attention, full (true) whole blocks",
    )
    parser.add_argument(
        "--float8",
        type=Float8Recipe,
        default="none",
        help="large linear layers multiply in float8 with one scale a tensor or a row; requires torchao",
    )


def choose_precision(trainer: Any) -> None:
    """Set an unset ``trainer.precision``: bf16-mixed on a CUDA device that computes in bfloat16, else 32-true."""
    if trainer["precision"] is None:
        in_bf16 = trains_on_cuda(trainer["accelerator"]) and torch.cuda.is_bf16_supported(including_emulation=False)
        trainer["precision"] = "bf16-mixed" if in_bf16 else "32-true"


def trains_on_cuda(accelerator: Any) -> bool:
    """Whether Lightning uses CUDA for a value of ``trainer.accelerator``."""
    return accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def accelerate_networks(
    module: nn.Module,
    device: torch.device,
    compile: bool | Literal["auto"],
    gradient_checkpointing: Recomputation | bool,
    float8: Float8Recipe = "none",
) -> None:
    """Set the precision of matrix products and what blocks recompute, and compile them, as the options say.

    None of it changes the names or the values of weights: runs continue, and are exported, with other options.

    Args:
        module: the module to train, with its frozen networks.
        device: on which it trains.
        compile: see ``add_acceleration_options``.
        gradient_checkpointing: see ``add_acceleration_options``.
        float8: see ``add_acceleration_options``.

    Raises:
        ValueError: the device, or this installation, has no float8.
    """
    allow_tf32(device)
    check_float8_device(float8, device)
    if float8 != "none":
        print(f"{convert_to_float8(module, float8)} linear layers multiply in float8, scaled {float8}")
    if isinstance(gradient_checkpointing, bool):
        gradient_checkpointing = "full" if gradient_checkpointing else "none"
    recompute_blocks(module, gradient_checkpointing)
    if resolve_compile(compile, device):
        compile_blocks(module)
