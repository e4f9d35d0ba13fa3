"""DreamerV3's optimizer: gradients clipped relative to their weights, then normalized, then momentum.

Clipping: Brock et al., arXiv 2102.06171, here by whole tensors. The rest is LaProp (Ziyin et al., arXiv 2002.04839):
Adam with the momentum taken after the normalization, so that the effect of a large gradient does not persist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LaProp(Optimizer):
    """The optimizer described in the module's docstring.

    Args:
        parameters: to train.
        lr: learning rate, reached after the warm-up.
        betas: of the momentum, and of the mean square.
        eps: added to the root of the mean square.
        clip: largest gradient norm of a tensor, relative to the norm of its weights; 0 disables clipping.
        min_weight_norm: lower bound of the weight norm used for clipping.
        warmup: steps over which the learning rate grows from 0.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        min_weight_norm: float = 1e-3,
        warmup: int = 1000,
    ) -> None:
        if lr < 0 or clip < 0 or warmup < 0:
            raise ValueError(f"lr, clip and warmup must be 0 or more, got {lr}, {clip} and {warmup}")
        super().__init__(
            parameters,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "clip": clip,
                "min_weight_norm": min_weight_norm,
                "warmup": warmup,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; weights without a gradient stay as they are."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update_group(group, weights)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was saved; the number of steps, an integer in old checkpoints, returns to the device."""
        super().__setstate__(state)
        for group in self.param_groups:
            if "steps" in group:
                device = group["params"][0].device
                group["steps"] = torch.as_tensor(group["steps"], dtype=torch.float64, device=device)

    def _update_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if group["clip"]:
            gradient_norms, weight_norms = torch._foreach_norm(gradients), torch._foreach_norm(weights)
            limits = torch._foreach_mul(torch._foreach_clamp_min(weight_norms, group["min_weight_norm"]), group["clip"])
            ratios = torch._foreach_clamp_min(torch._foreach_div(gradient_norms, limits), 1.0)
            gradients = list(torch._foreach_div(gradients, ratios))
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"square": torch.zeros_like(weight), "momentum": torch.zeros_like(weight)}
        squares = [self.state[weight]["square"] for weight in weights]
        momenta = [self.state[weight]["momentum"] for weight in weights]
        momentum_beta, square_beta = group["betas"]
        square_weight, rate = self._count_step(group, weights[0])
        torch._foreach_mul_(squares, square_beta)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - square_beta)
        roots = torch._foreach_sqrt(torch._foreach_div(squares, square_weight))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_lerp_(momenta, torch._foreach_div(gradients, roots), 1 - momentum_beta)
        torch._foreach_sub_(weights, torch._foreach_mul(momenta, rate))

    def _count_step(self, group: dict[str, Any], weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the weights in the mean square, and the learning rate divided by that of the momentum.

        They are computed on the device, so that a captured step counts on.
        """
        if "steps" not in group:
            group["steps"] = torch.zeros((), dtype=torch.float64, device=weight.device)
        steps = group["steps"]
        steps += 1
        momentum_beta, square_beta = group["betas"]
        warmed_up = ((steps - 1) / group["warmup"]).clamp(max=1.0) if group["warmup"] else torch.ones_like(steps)
        rate = group["lr"] * warmed_up / (1 - momentum_beta**steps)
        return (1 - square_beta**steps).to(weight.dtype), rate.to(weight.dtype)
