"""Prediction heads over the features of a state: rewards, values, continuation.

Dimensions: d feature size, k outputs of a head.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.dense_layers import ActivationType, NormType, make_dense_mlp, make_output_layer
from vwm.nn.two_hot import SymexpTwoHot

HeadDistribution = Literal["normal", "two_hot", "bernoulli"]


class PredictionHead(nn.Module):
    """MLP that predicts the distribution of one scalar.

    Args:
        input_size: d.
        width: Width of the hidden layers.
        layers: Number of hidden layers.
        distribution: ``"normal"``: mean of a normal distribution of variance 1 (Dreamer v1 and v2). ``"two_hot"``:
            logits of symexp-spaced bins, initially all equal, whose mean is 0 (DreamerV3). ``"bernoulli"``: logit of a
            probability.
        norm: Normalization of the hidden layers.
        activation: Activation of the hidden layers.
        num_bins: Number of bins of ``"two_hot"``.

    Raises:
        ValueError: ``distribution`` is unknown.
    """

    def __init__(
        self,
        input_size: int,
        width: int = 256,
        layers: int = 1,
        distribution: HeadDistribution = "two_hot",
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        num_bins: int = 255,
    ) -> None:
        super().__init__()
        if distribution not in ("normal", "two_hot", "bernoulli"):
            raise ValueError(f"distribution={distribution!r} must be 'normal', 'two_hot' or 'bernoulli'")
        self.distribution = distribution
        self.body = make_dense_mlp(input_size, width, layers, norm, activation)
        two_hot = distribution == "two_hot"
        self.output = make_output_layer(
            width if layers else input_size, num_bins if two_hot else 1, norm, scale=0.0 if two_hot else 1.0
        )
        self.two_hot = SymexpTwoHot(num_bins) if two_hot else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the parameters of the distribution for ``mean`` and ``loss``: [..., d] -> [..., k]."""
        outputs: Tensor = self.output(self.body(features))
        return outputs

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the expected value (``"bernoulli"``: the probability): [..., k] -> [...]."""
        if self.two_hot is not None:
            return self.two_hot.mean(outputs)
        return outputs.squeeze(-1).sigmoid() if self.distribution == "bernoulli" else outputs.squeeze(-1)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the negative log-likelihood without constants: outputs [..., k], target [...] -> [...]."""
        if self.two_hot is not None:
            return self.two_hot.loss(outputs, target)
        scalar = outputs.squeeze(-1)
        if self.distribution == "bernoulli":
            return F.binary_cross_entropy_with_logits(scalar, target.to(scalar.dtype), reduction="none")
        return 0.5 * (scalar - target).square()
