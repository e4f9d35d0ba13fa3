"""The blocks of a network: the equal parts of which it is a stack, which are compiled and recomputed one by one."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
CompilerBackend = str | Callable[..., Any]
"""What turns graphs of operations into code: the name of a backend of ``torch.compile``, or a function."""
RECOMPILE_LIMIT = 64
"""Variants of a block's code that are kept: block sizes, with and without gradients, shapes. torch's limit of 8 counts
those of all networks together, and a block beyond it would run uncompiled."""


def prepare_compiler() -> None:
    """Let the compiler keep ``RECOMPILE_LIMIT`` variants, and work in silence; called before anything is compiled."""
    import torch._dynamo.config as settings  # the compiler, which takes as long to import as torch

    settings.recompile_limit = max(settings.recompile_limit, RECOMPILE_LIMIT)
    # To store code, it reads all attributes of all modules, and jsonargparse warns of each that is deprecated.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def resolve_compile(compile: bool | Literal["auto"], device: torch.device) -> bool:
    """Return whether to compile networks that train on a device: ``auto`` does on CUDA where there is a compiler."""
    return device.type == "cuda" and _has_compiler() if compile == "auto" else compile


def _has_compiler() -> bool:
    """Whether this machine can compile for CUDA; otherwise say that it cannot."""
    from torch.utils._triton import has_triton

    found = has_triton() and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
    if not found:
        print("note: training without torch.compile, which requires Triton and a C compiler (gcc) on this machine")
    return found


def find_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of all parts of a network: of each attribute ``blocks`` that holds modules."""
    for part in network.modules():
        blocks = getattr(part, "blocks", None)
        if isinstance(blocks, nn.ModuleList | tuple):
            yield from blocks


def compile_blocks(
    network: nn.Module, backend: CompilerBackend = "inductor", fullgraph: bool = False, dynamic: bool | None = None
) -> None:
    """Compile every block in place, which keeps the names of the weights.

    Blocks of equal settings share their compiled code, so that compilation takes as long for 32 blocks as for one.
    Memory that is recomputed (see ``recompute_blocks``) is chosen inside the compiled code.

    Args:
        network: the network, or a whole training module: its frozen networks are compiled, too.
        backend: see ``CompilerBackend``.
        fullgraph: whether a block that cannot be compiled as one graph is an error.
        dynamic: whether the code fits all shapes; None for where shapes change, False for one code per shape.
    """
    prepare_compiler()
    for block in find_blocks(network):
        block.compile(backend=backend, fullgraph=fullgraph, dynamic=dynamic)


def with_compiled_blocks(network: Network, backend: CompilerBackend = "inductor") -> Network:
    """Return a copy that shares all weights and buffers, and whose blocks are compiled for each shape they meet."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    twin = copy.deepcopy(network, shared)
    if next(find_blocks(twin), None) is not None:
        compile_blocks(twin, backend, dynamic=False)
    return twin


@contextmanager
def uncompiled_blocks(network: nn.Module) -> Iterator[None]:
    """Run blocks uncompiled inside the with-statement: what has shapes that occur once would take long to compile."""
    compiled = {block: block._compiled_call_impl for block in find_blocks(network)}
    try:
        for block in compiled:
            block._compiled_call_impl = None
        yield
    finally:
        for block, call in compiled.items():
            block._compiled_call_impl = call
