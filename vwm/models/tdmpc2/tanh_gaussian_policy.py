"""A policy over latents: a Gaussian squeezed by tanh (TD-MPC2, arXiv 2310.16828; SAC, arXiv 1801.01290).

Legend: d width of a latent, a dimensions of an action.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from vwm.models.tdmpc2.layers import TDMPC2MLP


class TanhPolicyOutput(NamedTuple):
    """What a policy does.

    Attributes:
        action: [..., a] in [-1, 1].
        mean: [..., a], the middle of the distribution, in [-1, 1].
        entropy: [...], one draw's estimate for the Gaussian before tanh, times a. (TD-MPC2's "scaled entropy" divides
            by the log-probability after tanh what it then multiplies by it; this is what is left.)
    """

    action: Tensor
    mean: Tensor
    entropy: Tensor


class TanhGaussianPolicy(ModelMixin, ConfigMixin):
    """See above.

    Args:
        latent: d.
        action_dims: a.
        width: of the two hidden layers.
        log_std_min, log_std_max: between which a tanh keeps the deviation's logarithm.
    """

    @register_to_config
    def __init__(
        self,
        latent: int = 512,
        action_dims: int = 1,
        width: int = 512,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        if not log_std_min < log_std_max:
            raise ValueError(f"log_std_min must be below log_std_max, got {log_std_min} and {log_std_max}")
        self.action_dims, self.low, self.high = action_dims, log_std_min, log_std_max
        self.layers = TDMPC2MLP([latent], [width, width], 2 * action_dims)

    def forward(self, latent: Tensor, noise: Tensor) -> TanhPolicyOutput:
        """Latents [..., d] and standard normal noise [..., a]."""
        mean, log_std = self._gaussian(latent)
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        entropy = -density.sum(-1) * self.action_dims
        return TanhPolicyOutput(torch.addcmul(mean, noise, log_std.exp()).tanh(), mean.tanh(), entropy)

    def act(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Actions alone, [..., a]; see ``forward``."""
        mean, log_std = self._gaussian(latent)
        return torch.addcmul(mean, noise, log_std.exp_()).tanh()

    def _gaussian(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(latent).chunk(2, dim=-1)
        return mean, self.low + 0.5 * (self.high - self.low) * (raw.tanh() + 1)
