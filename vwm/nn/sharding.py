"""Weights that are sharded over processes: FSDP2 for the blocks of trained networks (arXiv 2304.11277, section 4).

A block's weights are gathered while it computes, and every process keeps one part of them, of their gradients and of
the optimizer's state. All other weights (embeddings, heads, discriminators, frozen tokenizers) are few: every process
keeps them whole, and their gradients are averaged before the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vwm.core.blocks import find_blocks
from vwm.core.process_group import is_distributed
from vwm.nn.tensor_parallel import weight_split, whole_shape

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``, found out without the slow import of ``torch.distributed.tensor``."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, which shares its memory; a tensor that is not sharded is its own part."""
    part: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def shard_group(tensor: Tensor) -> dist.ProcessGroup:
    """Return the processes over which a sharded tensor is sharded; the others have copies of it."""
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    group: dist.ProcessGroup = mesh.get_group(mesh.ndim - 1)  # the last dimension is that of shards
    return group


def whole_tensor(tensor: Tensor, weight: Tensor | None = None) -> Tensor:
    """Gather a sharded tensor in every process; one that is not sharded is returned as it is.

    Args:
        tensor: a weight, or a tensor of its shape.
        weight: that weight, which knows how it is divided over a tensor-parallel group; None for ``tensor``.
    """
    weight = tensor if weight is None else weight
    split = weight_split(weight) if tensor.shape == weight.shape else None
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole if split is None else split.gather(whole)


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, which every process has, divided as a weight of its shape, on that one's device.

    One that is sharded already is returned as it is.
    """
    if is_sharded(whole):
        return whole
    whole = whole.to(device=local_part(like).device)
    split = weight_split(like)
    whole = whole if split is None else split.cut(whole)
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def from_local_part(part: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which ``part`` is this process's part, sharded as another one of its shape."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def shard_blocks(
    module: nn.Module,
    networks: Iterable[nn.Module],
    mesh: DeviceMesh,
    compute_dtype: torch.dtype | None = None,
    whole: Iterable[nn.Parameter] = (),
) -> None:
    """Shard the blocks of networks in place, which may be on the meta device; names of weights stay the same.

    To be called after the blocks recompute activations and are compiled.

    Args:
        module: what holds the networks, and runs them in its ``forward``.
        networks: those to shard.
        mesh: the processes: one dimension of shards, or two, of replicas and of the shards of a replica.
        compute_dtype: type in which weights are gathered; gradients are summed in float32. None for the weights' own.
        whole: weights of blocks that every process keeps whole.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Inputs keep their type, as under autocast: the sum over residual branches is not rounded in each block.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=None if compute_dtype is None else torch.float32,
        cast_forward_inputs=False,
    )
    kept = set(whole)
    for network in networks:
        for block in find_blocks(network):
            weights = set(block.parameters())
            if weights - kept:
                fully_shard(
                    block, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=kept & weights
                )
    rest = {weight for weight in module.parameters() if not is_sharded(weight)}
    # Without weights of its own, the module begins and ends what blocks do ahead of each other.
    fully_shard(module, mesh=mesh, ignored_params=rest)


def start_sharding(module: nn.Module) -> None:
    """Make ``module`` the root of its sharded blocks, so that they can also be called outside of its ``forward``."""
    module._get_fsdp_state()._lazy_init()  # type: ignore[operator]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights and all buffers of a module, those included that are not saved."""
    yield from module.named_parameters()
    yield from module.named_buffers()


@torch.no_grad()
def materialize_from_first_rank(module: nn.Module, values: Mapping[str, Tensor] | None, device: torch.device) -> None:
    """Allocate a module that is on the meta device, and fill it with the values that the first process has.

    Args:
        module: the module, sharded or not.
        values: every tensor of ``named_tensors``, in the first process; None in the others.
        device: where to allocate.
    """
    stray = [f"{name}.{key}" for name, part in module.named_modules() for key, x in vars(part).items() if _is_meta(x)]
    if stray:
        raise ValueError(f"{', '.join(stray)} are tensors that are no buffers: register them, to shard this module")
    module.to_empty(device=device)
    for name, tensor in named_tensors(module):
        whole = torch.empty(whole_shape(tensor), dtype=tensor.dtype, device=device)
        if values is not None:
            whole.copy_(values[name])
        dist.broadcast(whole, src=0)
        local_part(tensor).copy_(local_part(shard_like(whole, tensor)))


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


@torch.no_grad()
def average_whole_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Average the gradients of weights that every process keeps whole over processes, in one message for each type.

    A weight without a gradient in some processes only has zeros there.
    """
    if dist.get_world_size() == 1:
        return
    trained = [weight for weight in weights if weight.requires_grad and not is_sharded(weight)]
    if not trained:
        return
    used = torch.tensor([float(weight.grad is not None) for weight in trained], device=trained[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for weight, is_used in zip(trained, used.tolist(), strict=True):
        if is_used:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            by_type.setdefault(weight.grad.dtype, []).append(weight.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


@torch.no_grad()
def clip_sharded_gradients(weights: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of weights, some of them sharded, so that their norm is at most ``max_norm``.

    Returns:
        The norm before, the same in all processes.
    """
    trained = [weight for weight in weights if weight.grad is not None]
    parts = [local_part(weight.grad) for weight in trained if weight.grad is not None]
    if not parts:
        return torch.zeros(())
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(parts)]).square()
    is_part = torch.tensor([is_sharded(weight) for weight in trained], device=norms.device)
    splits = [weight_split(weight) for weight in trained]
    is_split = torch.tensor([split is not None for split in splits], device=norms.device)
    # Of weights that are divided over a tensor-parallel group, and of all others.
    sharded = torch.stack([norms[is_part & is_split].sum(), norms[is_part & ~is_split].sum()])
    group = next((shard_group(weight) for weight in trained if is_sharded(weight)), None)
    if group is not None:
        dist.all_reduce(sharded, group=group)
    split_norm = sharded[0] + norms[~is_part & is_split].sum()
    tensor_group = next((split.group for split in splits if split is not None), None)
    if tensor_group is not None:
        tensor_group.all_reduce(split_norm)
    norm = (split_norm + sharded[1] + norms[~is_part & ~is_split].sum()).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(parts, factor.to(parts[0].dtype))
    return norm


def all_finite(weights: Iterable[nn.Parameter]) -> bool:
    """Whether weights are finite, in all processes."""
    finite = torch.stack([local_part(weight.detach()).isfinite().all() for weight in weights]).all()
    if is_distributed():
        flag = finite.float()
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        finite = flag > 0
    return bool(finite)
