"""Outputs of a transformer's blocks, for probing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def capture_block_outputs(blocks: nn.ModuleList, layer: int | None) -> Iterator[list[Tensor]]:
    """Collect the outputs of one block, [b, t, n, d] for each call, while the block of the with-statement runs."""
    assert layer is not None
    outputs: list[Tensor] = []
    hook = blocks[layer].register_forward_hook(
        lambda _module, _inputs, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        yield outputs
    finally:
        hook.remove()


def default_probe_layer(depth: int) -> int:
    """Return the last layer of the first two thirds, usually the most informative one of a generative network."""
    return max(round(depth * 2 / 3), 1) - 1
