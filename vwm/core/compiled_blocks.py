"""Networks whose transformer blocks are compiled, next to the plain ones, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

from vwm.core.network_base import ModelMixin

CompilerBackend = str | Callable[..., Any]
"""What turns graphs of operations into code: the name of a backend of ``torch.compile``, or a function."""
RECOMPILE_LIMIT = 64
"""Number of shapes and kinds of blocks that torch compiles before it gives up; by default it is 8, and blocks of space
and of time, each for several batches, are more."""


def with_compiled_blocks(network: ModelMixin, backend: CompilerBackend = "inductor") -> ModelMixin:
    """Return a copy that shares all weights and buffers, and whose blocks are compiled when they are first used.

    Args:
        network: with transformers, whose layers are in a ``blocks``; other networks come back as plain copies.
        backend: of ``torch.compile``.
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    twin: ModelMixin = copy.deepcopy(network, shared)
    blocks = [block for part in twin.modules() for block in getattr(part, "blocks", ())]
    if blocks:
        import torch._dynamo  # takes seconds, and is needed here only

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
    return twin
