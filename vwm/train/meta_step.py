"""A training step on the meta device: what its tensors need in memory, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vwm.core.blocks import find_blocks
from vwm.nn.recomputation import Recomputation, recompute_blocks
from vwm.nn.training_module import TrainingModule
from vwm.train.live_memory import LiveMemory
from vwm.train.meta_kernels import MetaKernels


@dataclass(frozen=True)
class StepMemory:
    """Bytes of the tensors of a step in one process, without weights and what lives from step to step.

    Attributes:
        kept: activations at the end of the forward pass, which the backward pass reads.
        forward_peak: most bytes in the forward pass, gathered weights included.
        backward_peak: most bytes in the backward pass, gathered weights included, without finished gradients.
        backward_peak_with_gradients: the same with gradients from the moment each of them is finished.
    """

    kept: int
    forward_peak: int
    backward_peak: int
    backward_peak_with_gradients: int


def measure_step_memory(
    module: TrainingModule,
    batch: Any,
    recomputation: Recomputation = "none",
    compute_dtype: torch.dtype | None = None,
    sharded: bool = False,
) -> StepMemory:
    """Compute a loss and its gradients on the meta device, and count the memory of all tensors.

    Args:
        module: the module on the meta device; its weights are left without gradients.
        batch: a batch on the meta device.
        recomputation: what blocks recompute.
        compute_dtype: the lower precision of autocast, in which sharded weights are gathered; None without.
        sharded: whether blocks gather their weights before they compute.
    """
    recompute_blocks(module, recomputation)
    memory, kernels = LiveMemory(), MetaKernels(compute_dtype, keeps_casts=recomputation == "none")
    with _sharded_blocks(module, memory, compute_dtype) if sharded else _whole_blocks(module, memory) as gradients:
        with memory, kernels, kernels.as_autocast():
            loss, _ = module(batch)
        kernels.end_autocast()
        kept, forward_peak = memory.live, memory.peak
        gradients.start(memory)
        with memory, kernels, kernels.as_autocast():
            _run_backward(loss)
        del loss
    module.zero_grad(set_to_none=True)
    recompute_blocks(module, "none")
    with_gradients = max(gradients.peak_with_finished, memory.peak)
    return StepMemory(kept, forward_peak, memory.peak, with_gradients)


def _run_backward(loss: Tensor) -> None:
    """Run ``loss.backward()``, which leaves all function modes, inside them: blocks compute again there."""
    from torch.autograd.graph import _engine_run_backward

    seed = torch.ones_like(loss)
    _engine_run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


class _FinishedGradients:
    """Takes the gradients that the backward pass has finished out of the count of live bytes, group by group.

    Args:
        groups: weights whose gradients leave together, with the bytes that sending them away needs.
        memory: the count.
    """

    def __init__(self, groups: list[tuple[list[nn.Parameter], int]], memory: LiveMemory) -> None:
        self.memory = memory
        self.gathered = 0
        self.finished = 0
        self.peak_with_finished = 0
        self._waiting: dict[int, set[nn.Parameter]] = {}
        self._handles = []
        for number, (weights, extra) in enumerate(groups):
            self._waiting[number] = set(weights)
            for weight in weights:
                hook = self._hook(number, list(weights), extra)
                self._handles.append(weight.register_post_accumulate_grad_hook(hook))

    def start(self, memory: LiveMemory) -> None:
        """Begin with the backward pass, in which the weights of two blocks are gathered all the time."""
        memory.add_bytes(self.gathered)
        memory.restart_peak()

    def _hook(self, number: int, weights: list[nn.Parameter], extra: int) -> Any:
        def finish(weight: Tensor) -> None:
            waiting = self._waiting[number]
            waiting.discard(weight)
            if waiting:
                return
            self.memory.add_bytes(extra)
            self.memory.add_bytes(-extra)
            self.peak_with_finished = max(self.peak_with_finished, self.memory.peak + self.finished)
            self.finished += self.memory.exclude(weight.grad for weight in weights)
            self.peak_with_finished = max(self.peak_with_finished, self.memory.live + self.finished)

        return finish

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


@contextmanager
def _whole_blocks(module: nn.Module, memory: LiveMemory) -> Iterator[_FinishedGradients]:
    gradients = _FinishedGradients([([p], 0) for p in module.parameters() if p.requires_grad], memory)
    yield gradients
    gradients.remove()


@contextmanager
def _sharded_blocks(
    module: TrainingModule, memory: LiveMemory, compute_dtype: torch.dtype | None
) -> Iterator[_FinishedGradients]:
    """Let blocks gather their weights, in the type in which they compute, as ``shard_blocks`` does.

    While a block computes, the weights of the next one are on their way. Its gradients are whole until they are summed
    in float32, from a copy.
    """
    blocks = sharded_blocks(module)
    types = {weight: weight.dtype for weights in blocks.values() for weight in weights}
    for weight in types:
        weight.data = weight.data.to(compute_dtype or weight.dtype)
    sizes = {block: sum(w.numel() * w.element_size() for w in weights) for block, weights in blocks.items()}
    handles = []
    for block in blocks:
        size = 2 * sizes[block]
        handles.append(block.register_forward_pre_hook(lambda *_, size=size: memory.add_bytes(size)))
        handles.append(block.register_forward_hook(lambda *_, size=size: memory.add_bytes(-size)))
    groups = [
        ([w for w in weights if w.requires_grad], sum(4 * w.numel() for w in weights)) for weights in blocks.values()
    ]
    rest = [w for w in module.parameters() if w.requires_grad and w not in types]
    gradients = _FinishedGradients([group for group in groups if group[0]] + [([w], 0) for w in rest], memory)
    gradients.gathered = 2 * max(sizes.values(), default=0)
    yield gradients
    gradients.remove()
    for handle in handles:
        handle.remove()
    module.zero_grad(set_to_none=True)
    for weight, dtype in types.items():
        weight.data = weight.data.to(dtype)


def sharded_blocks(module: TrainingModule) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the blocks that a sharded training shards, each with its sharded weights; see ``shard_blocks``."""
    whole = set(module.whole_weights())
    blocks = {block: None for network in module.networks().values() for block in find_blocks(network)}
    found = {block: [w for w in block.parameters() if w not in whole] for block in blocks}
    return {block: weights for block, weights in found.items() if weights}
