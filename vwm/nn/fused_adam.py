"""One kernel for the whole step of Adam on CUDA."""

from __future__ import annotations

from torch.optim import Adam, Optimizer


def fuse_adam_on_cuda(*optimizers: Optimizer) -> None:
    """Let each Adam and AdamW update all weights of a group in one kernel, where they are on CUDA.

    To be called after the weights are moved to their device, and before the first step. An optimizer constructed with
    ``fused=True`` would also unscale gradients by itself, and Lightning refuses to clip them for it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, Adam) else ():
            if all(weight.is_cuda for weight in group["params"]):
                group["fused"] = True
