"""Policies: from features to a distribution of actions, as each generation of agents has it.

Legend: d width of features, a choices or dimensions of an action.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace
from vwm.nn.dense_layers import ActivationType, NormType, make_dense_mlp, make_output_layer

ContinuousDistributionKind = Literal["bounded_normal", "tanh_normal"]


class ActionDistribution(ABC):
    """A distribution of actions at some moments [...]."""

    @abstractmethod
    def sample(self) -> Tensor:
        """An action each, int64 [...] or float [..., a] in [-1, 1] once clamped; continuous ones carry gradients."""

    @abstractmethod
    def mode(self) -> Tensor:
        """What is done without exploring."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """[...] of actions that were sampled."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """[...], or an estimate of it that carries gradients."""

    @abstractmethod
    def divergence(self, other: Any) -> Tensor:
        """KL(this || other) of a policy of the same kind, [...]: exact, in nats."""


class CategoricalActionDistribution(ActionDistribution):
    """Choices.

    Args:
        logits: [..., a].
        unimix: share of the uniform distribution in it, so that no choice ever dies out (DreamerV3).
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        if unimix:
            probabilities = (1 - unimix) * logits.float().softmax(-1) + unimix / logits.shape[-1]
            self.log_probabilities = probabilities.log()
        else:
            self.log_probabilities = logits.float().log_softmax(-1)

    def sample(self) -> Tensor:
        """See ``ActionDistribution``; the race of exponential clocks."""
        return (self.log_probabilities - torch.empty_like(self.log_probabilities).exponential_().log()).argmax(-1)

    def mode(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.log_probabilities.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``."""
        return self.log_probabilities.gather(-1, action[..., None]).squeeze(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``; exact."""
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(-1)

    def divergence(self, other: CategoricalActionDistribution) -> Tensor:
        """See ``ActionDistribution``."""
        return (self.log_probabilities.exp() * (self.log_probabilities - other.log_probabilities)).sum(-1)


class NormalActionDistribution(ActionDistribution):
    """A normal distribution a dimension; what lies outside [-1, 1] is played as the nearest bound (DreamerV3).

    Args:
        mean, std: [..., a].
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean = mean.float()
        self.std = std.float()

    def sample(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.mean + self.std * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """See ``ActionDistribution``."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``."""
        return (-((action - self.mean) / self.std).square() / 2 - self.std.log() - math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``; exact."""
        return (self.std.log() + math.log(2 * math.pi * math.e) / 2).sum(-1)

    def divergence(self, other: NormalActionDistribution) -> Tensor:
        """See ``ActionDistribution``; what squeezes both alike changes nothing."""
        apart = (self.std.square() + (self.mean - other.mean).square()) / (2 * other.std.square())
        return (other.std.log() - self.std.log() + apart - 0.5).sum(-1)


class TanhNormalActionDistribution(NormalActionDistribution):
    """A normal distribution squeezed into (-1, 1) (Dreamer v1 and v2)."""

    def sample(self) -> Tensor:
        """See ``ActionDistribution``."""
        return super().sample().tanh()

    def mode(self) -> Tensor:
        """See ``ActionDistribution``: where the middle goes."""
        return self.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``."""
        edge = 1 - torch.finfo(torch.float32).eps
        before = action.clamp(-edge, edge).atanh()
        return super().log_prob(before) - _log_tanh_derivative(before).sum(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``: the normal's own, and the squeezing's, estimated by one sample."""
        return super().entropy() + _log_tanh_derivative(super().sample()).sum(-1)


def _log_tanh_derivative(x: Tensor) -> Tensor:
    """Of tanh at x, without loss of digits far out."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


class Actor(nn.Module):
    """A network that gives policies.

    Args:
        inputs: d.
        actions: what is to be done.
        continuous: how continuous ones are drawn, ``"bounded_normal"`` (DreamerV3: mean by tanh, deviation in
            ``min_std``..1) or ``"tanh_normal"`` (v1, v2: the mean held below 5, deviation ``init_std`` at first).
        width, layers, norm, activation: of the network.
        unimix: see ``CategoricalActionDistribution``.
        min_std: least deviation.
        init_std: of ``tanh_normal``.

    Raises:
        ValueError: there is no such way to draw continuous actions.
    """

    MEAN_BOUND = 5.0

    def __init__(
        self,
        inputs: int,
        actions: ActionSpace,
        continuous: ContinuousDistributionKind = "bounded_normal",
        width: int = 256,
        layers: int = 3,
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        unimix: float = 0.01,
        min_std: float = 0.1,
        init_std: float = 5.0,
    ) -> None:
        super().__init__()
        if continuous not in ("bounded_normal", "tanh_normal"):
            raise ValueError(f"continuous={continuous!r} must be 'bounded_normal' or 'tanh_normal'")
        self.discrete = actions.kind == "discrete"
        self.continuous = continuous
        self.unimix = unimix
        self.min_std = min_std
        self.inverse_softplus_init_std = math.log(math.expm1(init_std))
        self.body = make_dense_mlp(inputs, width, layers, norm, activation)
        outputs = actions.size if self.discrete else 2 * actions.size
        self.output = make_output_layer(width if layers else inputs, outputs, norm, 0.01 if norm == "rms" else 1.0)

    def forward(self, features: Tensor) -> ActionDistribution:
        """[..., d] -> policies [...]."""
        said = self.output(self.body(features)).float()
        if self.discrete:
            return CategoricalActionDistribution(said, self.unimix)
        mean, raw = said.chunk(2, dim=-1)
        if self.continuous == "bounded_normal":
            return NormalActionDistribution(mean.tanh(), self.min_std + (1 - self.min_std) * (raw + 2).sigmoid())
        mean = self.MEAN_BOUND * (mean / self.MEAN_BOUND).tanh()
        return TanhNormalActionDistribution(mean, F.softplus(raw + self.inverse_softplus_init_std) + self.min_std)
