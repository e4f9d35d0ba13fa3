"""Statistics of the global batch, where each process of a training computes those of its own clips.

A loss that is the mean of its clips' losses needs none of this: gradients are averaged over processes. Other statistics
(a norm, a ratio, a covariance) of the mean are not the mean of the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vwm.core.process_group import rank_count


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a tensor, of equal shape in all processes, over them; no gradient flows through it."""
    if rank_count() == 1:
        return value.detach()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / rank_count()


def mean_count(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean number of True of a process, or 1 where there is none: a sum divided by it is a mean over all processes."""
    count = mean_over_ranks(mask.sum().to(dtype))
    return torch.where(count > 0, count, 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values of the global batch where ``mask`` is True; 0, with a gradient of 0, if it is nowhere."""
    return (values * mask).sum() / mean_count(mask, values.dtype)


@torch.no_grad()
def least_of_ranks(numbers: list[int]) -> list[int]:
    """Return the least of each number of all processes, which are in the memory of hosts."""
    if rank_count() == 1:
        return numbers
    least = torch.tensor(numbers)
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=_host_group())
    return [int(number) for number in least]


def _host_group() -> dist.ProcessGroup | None:
    """Return a group of all processes that sends host memory, without waiting for an accelerator."""
    if dist.get_backend() == "gloo":
        return None
    return _make_host_group(dist.distributed_c10d._get_default_group())


@lru_cache(maxsize=1)
def _make_host_group(world: dist.ProcessGroup) -> Any:
    return dist.new_group(backend="gloo")


def mean_over_ranks_with_gradient(value: Tensor) -> Tensor:
    """Average a tensor over processes; its gradient is that of the mean, once gradients are averaged over processes."""
    if rank_count() == 1:
        return value
    mean: Tensor = _MeanOverRanks.apply(value)
    return mean


class _MeanOverRanks(torch.autograd.Function):
    """The mean of all processes' values depends on each of them: its gradient is the mean of all their gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return mean_over_ranks(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return mean_over_ranks(gradient)


@torch.no_grad()
def join_ranks(rows: Tensor) -> Tensor:
    """Concatenate rows [n, ...], with an n of each process, in the order of the processes."""
    if rank_count() == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(rank_count())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    padded = torch.cat((rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])))
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def mean_logs_over_ranks(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average scalars over processes in one message; all processes give the same names."""
    if rank_count() == 1:
        return dict(logs)
    names = list(logs)
    values = torch.stack([torch.as_tensor(logs[name]).detach().double().reshape(()) for name in names])
    return dict(zip(names, mean_over_ranks(values).unbind(), strict=True))
