"""Layers whose weights are divided over processes that compute them together (tensor parallelism, arXiv 1909.08053).

Of each pair of products of a block, the first one's rows and the second one's columns are divided: each process has
whole attention heads, and some of the hidden units of a feed-forward, from the first product to the second. Its result
is summed over the processes, and so is the gradient of its input. Between blocks all processes have equal activations.

A fused matrix (queries, keys and values; both halves of SwiGLU) is divided part by part, so that a process has the rows
of its own heads and hidden units of each. ``WeightSplit`` says which part of a weight this process has. Optimizer
states and averages are divided as the weight is; checkpoints hold whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.blocks import find_blocks


@dataclass(eq=False)
class TensorGroup:
    """The processes that compute each layer together.

    Attributes:
        size: their number.
        rank: which of them this one is.
        processes: None where this one is imagined, as for estimates of memory.
        copy_processes: all processes that keep one copy of the weights, this group innermost.
    """

    size: int
    rank: int
    processes: dist.ProcessGroup | None = None
    copy_processes: dist.ProcessGroup | None = None

    def all_reduce(self, x: Tensor) -> None:
        """Sum over the processes in place."""
        dist.all_reduce(x, group=self.processes)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, of one shape."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.processes)
        return parts


@dataclass(frozen=True)
class WeightSplit:
    """Which part of a weight each process of a group has.

    Attributes:
        group: the processes.
        dim: the divided dimension; None where each has the whole weight, and computes a part of its gradient.
        parts: sizes, along this dimension, of the fused parts of the whole weight, of which each is divided evenly.
    """

    group: TensorGroup
    dim: int | None = None
    parts: tuple[int, ...] = ()

    def cut(self, whole: Tensor, rank: int | None = None, offset: int = 0) -> Tensor:
        """Return the part of a process, by default this one; ``offset`` dimensions stand before those of the weight."""
        assert self.dim is not None
        rank, dim = self.group.rank if rank is None else rank, self.dim + offset
        return torch.cat([part.chunk(self.group.size, dim)[rank] for part in whole.split(self.parts, dim)], dim)

    def join(self, parts: Iterable[Tensor], offset: int = 0) -> Tensor:
        """Undo ``cut`` for the parts of all processes."""
        assert self.dim is not None
        dim, sizes = self.dim + offset, [size // self.group.size for size in self.parts]
        fused = [part.split(sizes, dim) for part in parts]
        return torch.cat([piece for pieces in zip(*fused, strict=True) for piece in pieces], dim)

    def gather(self, part: Tensor) -> Tensor:
        """Return the whole tensor in every process."""
        return self.join(self.group.all_gather(part))

    def whole_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the whole weight of which a part has ``shape``."""
        return torch.Size(sum(self.parts) if dim == self.dim else size for dim, size in enumerate(shape))

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield where each piece of this process's part starts in the part and in the whole weight, and its size."""
        start = whole = 0
        for size in self.parts:
            mine = size // self.group.size
            yield start, whole + self.group.rank * mine, mine
            start, whole = start + mine, whole + size


def gradient_split(weight: Any) -> WeightSplit | None:
    """Return how a weight is divided, or that only its gradient is; None for all other weights."""
    split: WeightSplit | None = getattr(weight, "parallel_split", None)
    return split


def weight_split(weight: Any) -> WeightSplit | None:
    """Return how a weight is divided over a group; None where every process of it has the whole weight."""
    split = gradient_split(weight)
    return None if split is None or split.dim is None else split


def whole_shape(weight: Tensor) -> torch.Size:
    """Return the shape of the whole weight."""
    split = weight_split(weight)
    return weight.shape if split is None else split.whole_shape(weight.shape)


def named_splits(module: nn.Module) -> dict[str, WeightSplit]:
    """Return how the weights of a module are divided, by name."""
    found = {name: gradient_split(weight) for name, weight in module.named_parameters()}
    return {name: split for name, split in found.items() if split is not None}


def restore_splits(module: nn.Module, splits: Mapping[str, WeightSplit]) -> None:
    """Note what ``named_splits`` returned at the weights, where other objects have taken their place."""
    for name, split in splits.items():
        module.get_parameter(name).parallel_split = split  # type: ignore[attr-defined]


class ColumnParallelLinear(nn.Module):
    """Some of the outputs of a linear layer: ``[..., d] -> [..., e of this process]``.

    Args:
        linear: the whole layer.
        group: the processes.
        parts: sizes of the fused parts of the outputs; by default there is one.
        gather: whether every process gets all outputs, ``[..., e]``; of one part.
    """

    def __init__(
        self, linear: nn.Module, group: TensorGroup, parts: tuple[int, ...] | None = None, gather: bool = False
    ) -> None:
        super().__init__()
        weight, bias = _weight_and_bias(linear)
        split = WeightSplit(group, 0, parts or (len(weight),))
        _check_divides(group, split.parts)
        self.group = group
        self.gather = gather
        self.weight = _divide(weight, split)
        self.bias = None if bias is None else _divide(bias, split)

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        y = F.linear(sum_gradients(x, self.group), self.weight, self.bias)
        return _gather_outputs(y, self.group) if self.gather else y


class RowParallelLinear(nn.Module):
    """A linear layer of whose inputs each process has some: ``[..., d of this process] -> [..., e]``.

    Args:
        linear: the whole layer.
        group: the processes.
    """

    def __init__(self, linear: nn.Module, group: TensorGroup) -> None:
        super().__init__()
        weight, bias = _weight_and_bias(linear)
        _check_divides(group, (weight.shape[1],))
        self.group = group
        self.weight = _divide(weight, WeightSplit(group, 1, (weight.shape[1],)))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        y = sum_parts(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def divide_blocks(networks: Iterable[nn.Module], group: TensorGroup) -> None:
    """Divide the blocks of networks over a group, in place; the names of weights stay the same.

    Raises:
        ValueError: a block cannot be divided, or not by so many.
    """
    for network in networks:
        for block in find_blocks(network):
            divide = getattr(block, "divide_weights", None)
            if divide is None:
                raise ValueError(
                    f"tensor_parallel={group.size}: a {type(block).__name__} of {type(network).__name__} cannot be "
                    "divided over processes. Set tensor_parallel to 1; trainer.strategy=fsdp shards its weights, too"
                )
            divide(group)


def divide_heads(group: TensorGroup, **heads: int) -> list[int]:
    """Return how many of the attention heads each process gets. Raises ValueError where they do not divide evenly."""
    for name, count in heads.items():
        if count % group.size:
            raise ValueError(
                f"tensor_parallel={group.size} does not divide {name}={count}: every process has whole attention "
                "heads. Lower tensor_parallel, or set them otherwise"
            )
    return [count // group.size for count in heads.values()]


def divide_gradients(norm: nn.Module, group: TensorGroup) -> None:
    """Note that each process of a group computes a part of the gradients of a norm of heads."""
    for weight in norm.parameters():
        weight.parallel_split = WeightSplit(group)  # type: ignore[attr-defined]


@torch.no_grad()
def sum_partial_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of whole weights of which each process of a group has computed a part, in one message.

    To be called once before the optimizer's step, after all gradients are accumulated.
    """
    partial = [(weight, split) for weight in weights if (split := gradient_split(weight)) and split.dim is None]
    found = [(getattr(w.grad, "_local_tensor", w.grad), split) for w, split in partial if w.grad is not None]
    if not found:
        return
    gradients = [gradient for gradient, _ in found]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    found[0][1].group.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def sum_gradients(x: Tensor, group: TensorGroup) -> Tensor:
    """Return x, which all processes have; its gradient is the sum of theirs."""
    same: Tensor = _SumGradients.apply(x, group)
    return same


def sum_parts(x: Tensor, group: TensorGroup) -> Tensor:
    """Sum over the processes; the gradient of the sum, which all have, is that of every part."""
    total: Tensor = _SumParts.apply(x, group)
    return total


def _gather_outputs(x: Tensor, group: TensorGroup) -> Tensor:
    """Join the last dimension of all processes."""
    joined: Tensor = _GatherOutputs.apply(x, group)
    return joined


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: TensorGroup) -> Tensor:
        context.group = group
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        context.group.all_reduce(total)
        return total, None


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: TensorGroup) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        group.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None


class _GatherOutputs(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: TensorGroup) -> Tensor:
        context.group = group
        return torch.cat(group.all_gather(x), dim=-1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.chunk(context.group.size, dim=-1)[context.group.rank].contiguous(), None


def _weight_and_bias(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
    if type(layer) is not nn.Linear:
        raise ValueError(
            f"tensor parallelism divides linear layers, and one is a {type(layer).__name__}: set tensor_parallel to 1, "
            "or float8 to none, or train without LoRA"
        )
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    return weight, bias


def _check_divides(group: TensorGroup, sizes: Iterable[int]) -> None:
    for size in sizes:
        if size % group.size:
            raise ValueError(
                f"tensor_parallel={group.size} does not divide the {size} units of a layer: lower it, or set another "
                "width"
            )


def _divide(weight: nn.Parameter, split: WeightSplit) -> nn.Parameter:
    part = nn.Parameter(split.cut(weight.detach()), requires_grad=weight.requires_grad)
    part.parallel_split = split  # type: ignore[attr-defined]
    return part
