"""Tanh-squashed Gaussian policy over latents (TD-MPC2, arXiv 2310.16828; SAC, arXiv 1801.01290).

Dimensions: d latent size, a action dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.tdmpc2.layers import TDMPC2MLP


class TanhPolicyOutput(NamedTuple):
    """Sampled action of a policy.

    Attributes:
        action: [..., a], sample in [-1, 1].
        mean: [..., a], mean of the Gaussian after tanh, in [-1, 1].
        entropy: [...], one-sample estimate of the entropy of the Gaussian before tanh, times a. (This equals TD-MPC2's
            "scaled entropy", in which the log-probability after tanh cancels.)
    """

    action: Tensor
    mean: Tensor
    entropy: Tensor


class TanhGaussianPolicy(ModelMixin, ConfigMixin):
    """MLP that predicts mean and log standard deviation of the actions.

    Args:
        latent_size: d.
        action_dims: a.
        width: Width of the two hidden layers.
        log_std_min: Smallest log standard deviation.
        log_std_max: Largest log standard deviation; tanh maps the output to this range.

    Raises:
        ValueError: ``log_std_min`` is not below ``log_std_max``.
    """

    @register_to_config
    def __init__(
        self,
        latent_size: int = 512,
        action_dims: int = 1,
        width: int = 512,
        log_std_min: float = -10.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        if not log_std_min < log_std_max:
            raise ValueError(f"log_std_min must be below log_std_max, got {log_std_min} and {log_std_max}")
        self.action_dims = action_dims
        self.log_std_min = log_std_min
        self.log_std_max = log_std_max
        self.layers = TDMPC2MLP([latent_size], [width, width], 2 * action_dims)

    def forward(self, latent: Tensor, noise: Tensor) -> TanhPolicyOutput:
        """Sample actions, given latents [..., d] and standard normal noise [..., a]."""
        mean, log_std = self._gaussian(latent)
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        entropy = -density.sum(-1) * self.action_dims
        return TanhPolicyOutput(torch.addcmul(mean, noise, log_std.exp()).tanh(), mean.tanh(), entropy)

    def sample_action(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Return only the sampled actions [..., a]; see ``forward``."""
        mean, log_std = self._gaussian(latent)
        return torch.addcmul(mean, noise, log_std.exp_()).tanh()

    def _gaussian(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw_log_std = self.layers(latent).chunk(2, dim=-1)
        return mean, self.log_std_min + 0.5 * (self.log_std_max - self.log_std_min) * (raw_log_std.tanh() + 1)
