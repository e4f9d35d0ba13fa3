"""The processes that train together, of which there may be one."""

from __future__ import annotations

import torch.distributed as dist


def is_distributed() -> bool:
    """Whether this process belongs to a group of processes."""
    return dist.is_available() and dist.is_initialized()


def rank_count() -> int:
    """Return the number of processes that train together; 1 outside of a process group."""
    return dist.get_world_size() if is_distributed() else 1


def process_rank() -> int:
    """Return the number of this process among them; 0 outside of a process group."""
    return dist.get_rank() if is_distributed() else 0
