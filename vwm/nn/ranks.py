"""Statistics of the global batch, where each process of a training computes those of its own clips.

A loss that is the mean of its clips' losses needs none of this: gradients are averaged over processes. Other statistics
(a norm, a ratio, a covariance) of the mean are not the mean of the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def rank_count() -> int:
    """Return the number of processes that train together; 1 outside of a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a tensor, of equal shape in all processes, over them; no gradient flows through it."""
    if rank_count() == 1:
        return value.detach()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / rank_count()


def mean_over_ranks_with_gradient(value: Tensor) -> Tensor:
    """Average a tensor over processes; its gradient is that of the mean, once gradients are averaged over processes."""
    if rank_count() == 1:
        return value
    from torch.distributed.nn.functional import all_reduce

    mean: Tensor = all_reduce(value) / rank_count()
    return mean


@torch.no_grad()
def join_ranks(rows: Tensor) -> Tensor:
    """Concatenate rows [n, ...], as many in each process, in the order of the processes."""
    if rank_count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(rank_count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def mean_logs_over_ranks(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average scalars over processes in one message; all processes give the same names."""
    if rank_count() == 1:
        return dict(logs)
    names = list(logs)
    values = torch.stack([torch.as_tensor(logs[name]).detach().double().reshape(()) for name in names])
    return dict(zip(names, mean_over_ranks(values).unbind(), strict=True))
