"""What is read from the features of a state: rewards, values, whether the episode goes on.

Legend: d width of the features, k numbers that a head says.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.dense_layers import ActivationType, NormType, make_dense_mlp, make_output_layer
from vwm.nn.two_hot import SymexpTwoHot

HeadDistribution = Literal["normal", "two_hot", "bernoulli"]


class PredictionHead(nn.Module):
    """Some layers, and a distribution of one number.

    Args:
        inputs: d.
        width, layers, norm, activation: of the layers.
        says: ``"normal"``, the mean of a normal distribution of variance 1 (Dreamer v1 and v2); ``"two_hot"``, shares
            of symexp-spaced bins, all equal at first, which mean 0 (DreamerV3); ``"bernoulli"``, a probability.
        bins: of a two-hot one.

    Raises:
        ValueError: it should say something else.
    """

    def __init__(
        self,
        inputs: int,
        width: int = 256,
        layers: int = 1,
        says: HeadDistribution = "two_hot",
        norm: NormType = "rms",
        activation: ActivationType = "silu",
        bins: int = 255,
    ) -> None:
        super().__init__()
        if says not in ("normal", "two_hot", "bernoulli"):
            raise ValueError(f"a head says 'normal', 'two_hot' or 'bernoulli', not {says!r}")
        self.says = says
        self.body = make_dense_mlp(inputs, width, layers, norm, activation)
        two_hot = says == "two_hot"
        self.output = make_output_layer(
            width if layers else inputs, bins if two_hot else 1, norm, 0.0 if two_hot else 1.0
        )
        self.two_hot = SymexpTwoHot(bins) if two_hot else None

    def forward(self, features: Tensor) -> Tensor:
        """[..., d] -> what the head says of it [..., k], for ``mean`` and ``loss``."""
        said: Tensor = self.output(self.body(features))
        return said

    def mean(self, said: Tensor) -> Tensor:
        """[..., k] -> the expected number, or the probability [...]."""
        if self.two_hot is not None:
            return self.two_hot.mean(said)
        return said.squeeze(-1).sigmoid() if self.says == "bernoulli" else said.squeeze(-1)

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        """The negative log-likelihood, without constants: [..., k] and [...] -> [...]."""
        if self.two_hot is not None:
            return self.two_hot.loss(said, target)
        number = said.squeeze(-1)
        if self.says == "bernoulli":
            return F.binary_cross_entropy_with_logits(number, target.to(number.dtype), reduction="none")
        return 0.5 * (number - target).square()
