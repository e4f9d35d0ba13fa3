"""Action distributions and the networks that produce them, for the actors of Dreamer v1, v2 and v3.

Legend: d width of features, a number of discrete actions or dimensions of a continuous one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.spaces import ActionSpace
from vwm.nn.dense_layers import ActivationType, NormType, make_dense_mlp, make_output_layer
from vwm.nn.precision import at_least_float32

ContinuousDistributionKind = Literal["bounded_normal", "tanh_normal"]


class ActionDistribution(ABC):
    """A batch of distributions over actions, of shape [...]."""

    @abstractmethod
    def sample(self) -> Tensor:
        """Draw actions, int64 [...] or float [..., a] in [-1, 1] once clamped; continuous ones carry gradients."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Return the actions to take without exploring."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability [...] of sampled actions."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy [...], or a differentiable estimate of it."""

    @abstractmethod
    def kl_divergence(self, other: Any) -> Tensor:
        """Return the exact KL(self || other) in nats, [...]; ``other`` is a distribution of the same class."""


class CategoricalActionDistribution(ActionDistribution):
    """A categorical distribution over discrete actions.

    Args:
        logits: [..., a].
        unimix: fraction of the uniform distribution mixed in, so that no action's probability vanishes (DreamerV3).
    """

    def __init__(self, logits: Tensor, unimix: float = 0.0) -> None:
        if unimix:
            probabilities = (1 - unimix) * logits.float().softmax(-1) + unimix / logits.shape[-1]
            self.log_probabilities = probabilities.log()
        else:
            self.log_probabilities = logits.float().log_softmax(-1)

    def sample(self) -> Tensor:
        """See ``ActionDistribution``; drawn with exponential noise (the Gumbel-max trick)."""
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

    def kl_divergence(self, other: CategoricalActionDistribution) -> Tensor:
        """See ``ActionDistribution``."""
        return (self.log_probabilities.exp() * (self.log_probabilities - other.log_probabilities)).sum(-1)


class NormalActionDistribution(ActionDistribution):
    """A normal distribution per dimension; actions outside [-1, 1] are clamped when they are taken (DreamerV3).

    Args:
        mean, std: [..., a].
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean = at_least_float32(mean)
        self.std = at_least_float32(std)

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

    def kl_divergence(self, other: NormalActionDistribution) -> Tensor:
        """See ``ActionDistribution``; the same for distributions that are both squashed by tanh."""
        scaled_distance = (self.std.square() + (self.mean - other.mean).square()) / (2 * other.std.square())
        return (other.std.log() - self.std.log() + scaled_distance - 0.5).sum(-1)


class TanhNormalActionDistribution(NormalActionDistribution):
    """A normal distribution squashed into (-1, 1) by tanh (Dreamer v1 and v2)."""

    def sample(self) -> Tensor:
        """See ``ActionDistribution``."""
        return super().sample().tanh()

    def sample_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """Draw actions [..., a] as ``sample`` does, with their log-probabilities [...], exact where tanh saturates."""
        unsquashed = super().sample()
        return unsquashed.tanh(), super().log_prob(unsquashed) - _log_tanh_derivative(unsquashed).sum(-1)

    def mode(self) -> Tensor:
        """See ``ActionDistribution``; the squashed mean."""
        return self.mean.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        """See ``ActionDistribution``."""
        limit = 1 - torch.finfo(torch.float32).eps
        unsquashed = action.clamp(-limit, limit).atanh()
        return super().log_prob(unsquashed) - _log_tanh_derivative(unsquashed).sum(-1)

    def entropy(self) -> Tensor:
        """See ``ActionDistribution``; the entropy of the normal, plus a one-sample estimate of the change by tanh."""
        return super().entropy() + _log_tanh_derivative(super().sample()).sum(-1)


def _log_tanh_derivative(x: Tensor) -> Tensor:
    """Return log(d tanh(x) / dx), numerically stable for large |x|."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


@dataclass(frozen=True)
class ActorConfig:
    """The network of an actor, and its objective.

    Attributes:
        gradient: ``"reinforce"`` (v3; v2 for discrete actions) or ``"dynamics"``, backpropagation through the world
            model (v1; v2 for continuous actions).
        entropy_scale: weight of the policy's entropy, in units of the return.
        continuous_distribution: of continuous actions: ``"bounded_normal"`` (DreamerV3: mean by tanh, deviation in
            ``min_std``..1) or ``"tanh_normal"`` (v1, v2: mean limited to 5, deviation ``init_std`` at first).
        width, layers, norm, activation: of the network.
        unimix: see ``CategoricalActionDistribution``.
        min_std: smallest deviation.
        init_std: initial deviation of ``tanh_normal``.
    """

    gradient: Literal["reinforce", "dynamics"] = "reinforce"
    entropy_scale: float = 3e-4
    continuous_distribution: ContinuousDistributionKind = "bounded_normal"
    width: int = 256
    layers: int = 3
    norm: NormType = "rms"
    activation: ActivationType = "silu"
    unimix: float = 0.01
    min_std: float = 0.1
    init_std: float = 5.0


class Actor(nn.Module):
    """A network that maps features to action distributions.

    Args:
        input_size: d.
        actions: the action space.
        config: see ``ActorConfig``.

    Raises:
        ValueError: an unknown ``continuous_distribution``.
    """

    MEAN_BOUND = 5.0

    def __init__(self, input_size: int, actions: ActionSpace, config: ActorConfig) -> None:
        super().__init__()
        if config.continuous_distribution not in ("bounded_normal", "tanh_normal"):
            raise ValueError(
                f"continuous_distribution={config.continuous_distribution!r} must be 'bounded_normal' or 'tanh_normal'"
            )
        self.discrete = actions.kind == "discrete"
        self.continuous_distribution = config.continuous_distribution
        self.unimix = config.unimix
        self.min_std = config.min_std
        self.inverse_softplus_init_std = math.log(math.expm1(config.init_std))
        width, layers, norm = config.width, config.layers, config.norm
        self.body = make_dense_mlp(input_size, width, layers, norm, config.activation)
        outputs = actions.size if self.discrete else 2 * actions.size
        weight_scale = 0.01 if norm == "rms" else 1.0
        self.output = make_output_layer(width if layers else input_size, outputs, norm, weight_scale)

    def forward(self, features: Tensor) -> ActionDistribution:
        """Return the action distributions [...] for features [..., d]."""
        outputs = at_least_float32(self.output(self.body(features)))
        if self.discrete:
            return CategoricalActionDistribution(outputs, self.unimix)
        mean, raw = outputs.chunk(2, dim=-1)
        if self.continuous_distribution == "bounded_normal":
            return NormalActionDistribution(mean.tanh(), self.min_std + (1 - self.min_std) * (raw + 2).sigmoid())
        mean = self.MEAN_BOUND * (mean / self.MEAN_BOUND).tanh()
        return TanhNormalActionDistribution(mean, F.softplus(raw + self.inverse_softplus_init_std) + self.min_std)
