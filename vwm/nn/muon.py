"""Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon/): steps along orthogonalized momenta of matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from timm.optim.adamw import adamw
from timm.optim.nadamw import nadamw
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from vwm.nn.sharding import is_sharded, local_part, shard_group
from vwm.nn.tensor_parallel import weight_split, whole_shape

NEWTON_SCHULZ_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""a, b and c of each iteration (https://leloykun.github.io/ponder/muon-opt-coeffs; timm's ``quintic``)."""


class Muon(Optimizer):
    """timm's Muon with its defaults, but with one Newton-Schulz iteration for all matrices of a shape.

    Updates of matrices are scaled by 0.2 sqrt(larger side), which gives them the size of AdamW's (arXiv 2502.16982,
    section 2.2). Convolution weights [out, in, ...] count as matrices [out, in * ...]. All other weights (see
    ``is_matrix_shape``) are trained by AdamW. The state of a weight has the same names as timm's.

    Of matrices that are sharded over processes, each process orthogonalizes an equal share: it gets their parts from
    the others, and returns the parts of the results (see ``_orthogonalize_sharded``).

    Args:
        params: weights, or groups of them.
        lr: learning rate.
        betas: coefficients of AdamW's running averages.
        weight_decay: multiplied by the learning rate, as in AdamW.
        momentum: coefficient of the running average of a matrix's gradients.
        nesterov: whether to look one step ahead: of matrices; other weights are trained by NAdamW.
        eps: least norm by which a matrix is divided; AdamW's epsilon.

    Raises:
        ValueError: a weight is flattened by FSDP's first version.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        nesterov: bool = False,
        eps: float = 1e-7,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "eps": eps,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See ``Optimizer``; refuses weights of FSDP's first version, whose shape is lost."""
        super().add_param_group(param_group)
        for weight in self.param_groups[-1]["params"]:
            if getattr(weight, "_fsdp_flattened", False):
                raise ValueError(
                    f"Muon orthogonalizes matrices, and a weight of shape {tuple(weight.shape)} is flattened: train "
                    "with trainer.strategy=fsdp, which is FSDP2"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; weights without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            stacks, others = defaultdict(list), []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if is_matrix_shape(whole_shape(weight)):
                    matrix_shape = (weight.shape[0], weight.shape[1:].numel())
                    division = is_sharded(weight), weight_split(weight)
                    stacks[matrix_shape, weight.dtype, weight.device, division].append(weight)
                else:
                    others.append(weight)
            for weights in stacks.values():
                self._update_matrices(group, weights)
            if others:
                self._update_others(group, others)
        return loss

    def _update_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update weights that are matrices of one shape."""
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [local_part(weight.grad) for weight in weights if weight.grad is not None]
        momenta = [local_part(self.state[weight]["momentum_buffer"]) for weight in weights]
        parts = [local_part(weight.detach()) for weight in weights]
        lr = group["lr"]
        torch._foreach_mul_(parts, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        matrices = torch.stack([matrix.flatten(1) for matrix in ahead])
        if is_sharded(weights[0]):
            stack = _orthogonalize_sharded(matrices, weights[0], group["eps"])
        else:
            stack = orthogonalize(matrices, group["eps"])
        shape = whole_shape(weights[0])
        scale = 0.2 * max(shape[0], shape[1:].numel()) ** 0.5
        stack = stack.to(weights[0].dtype, memory_format=torch.contiguous_format)
        updates = [update.view_as(part) for update, part in zip(stack, parts, strict=True)]
        torch._foreach_add_(parts, updates, alpha=-lr * scale)

    def _update_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update weights by AdamW, with Nesterov momentum by NAdamW."""
        for weight in weights:
            if "step" not in self.state[weight]:
                self.state[weight]["step"] = torch.zeros(())
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
        averages, squares, steps = (
            [local_part(self.state[weight][name]) for weight in weights] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        gradients = [local_part(weight.grad) for weight in weights if weight.grad is not None]
        weights = [local_part(weight) for weight in weights]
        settings = {
            "beta1": group["betas"][0],
            "beta2": group["betas"][1],
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "eps": group["eps"],
            "caution": False,
            "maximize": False,
            "max_lr": None,
        }
        if group["nesterov"]:
            nadamw(weights, gradients, averages, squares, steps, **settings)
        else:
            adamw(weights, gradients, averages, squares, [], steps, amsgrad=False, **settings)


def is_matrix_shape(shape: torch.Size) -> bool:
    """Whether weights of a shape are orthogonalized: no vectors, position embeddings, depthwise or slim matrices.

    timm's rule: both of the first two dimensions are above 1, and of the matrix [out, in * ...], the sides are 4 or
    more, and the larger one is at most 128 times the smaller one.
    """
    if len(shape) < 2 or 1 in shape[:2]:
        return False
    small, large = sorted((shape[0], shape[1:].numel()))
    return small >= 4 and large <= 128 * small


def _iteration_dtype(matrices: Tensor) -> torch.dtype:
    """Return the type of Newton-Schulz iterations: bfloat16, but float64 for matrices in float64.

    Rounded to bfloat16, two that differ in their last digit could have results that differ in the third one.
    """
    return torch.float64 if matrices.dtype == torch.float64 else torch.bfloat16


def orthogonalize(stack: Tensor, eps: float = 1e-7) -> Tensor:
    """[k, rows, columns] -> the same shape: about U V^T of each matrix U S V^T, by Newton-Schulz iterations.

    The singular values of the result are between about 0.7 and 1.2. ``eps`` is the least norm to divide by. The result
    has the iterations' type, see ``_iteration_dtype``.
    """
    x = stack.to(_iteration_dtype(stack))
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)).contiguous()
    for a, b, c in NEWTON_SCHULZ_COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _orthogonalize_sharded(parts: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Orthogonalize matrices of which every process has some rows.

    The processes of a copy of the weights take turns: the first of them gets the rows of the first matrix of all
    others, the second those of the second, and so on, so that each orthogonalizes an equal share of the matrices.

    Args:
        parts: [k, rows of this process, columns], of k matrices of one shape.
        weight: one of the sharded weights, [rows, ...].
        eps: see ``orthogonalize``.

    Returns:
        Shaped like ``parts``: the same rows of the results, of the type ``_iteration_dtype``.
    """
    split = weight_split(weight)
    group = shard_group(weight) if split is None else split.group.copy_processes
    assert group is not None
    owners, mine = dist.get_world_size(group), dist.get_rank(group)
    shards = dist.get_world_size(shard_group(weight))
    count, local_rows, columns = parts.shape
    rows = -(-weight.shape[0] // shards)  # of all processes but the last ones, which may have fewer
    turns = -(-count // owners)
    sent = parts.new_zeros(turns * owners, rows, columns, dtype=_iteration_dtype(parts))
    sent[:count, :local_rows] = parts
    # [turn, owner, rows, columns] -> [owner, turn, ...], and after the exchange [source of the rows, turn, ...].
    received = _exchange(sent.unflatten(0, (turns, owners)).transpose(0, 1).contiguous(), group)
    # [source, turn, rows, columns] -> [member of the tensor-parallel group, turn, its rows, columns].
    of_members = received.unflatten(0, (shards, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : weight.shape[0]]
    whole = of_members[0] if split is None else split.join(of_members, offset=1)
    owned = sum(turn * owners + mine < count for turn in range(turns))
    results = torch.zeros_like(whole)
    if owned:
        results[:owned] = orthogonalize(whole[:owned], eps)
    cut = [results] if split is None else [split.cut(results, rank, offset=1) for rank in range(split.group.size)]
    padded = results.new_zeros(len(cut), turns, shards * rows, columns)
    padded[:, :, : weight.shape[0]] = torch.stack(cut)
    returned = _exchange(padded.unflatten(2, (shards, rows)).permute(2, 0, 1, 3, 4).flatten(0, 1).contiguous(), group)
    return returned.transpose(0, 1).flatten(0, 1)[:count, :local_rows]


def _exchange(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send ``parts[i]`` to process i, and return what the processes sent to this one, in their order."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received
