"""Stochastic latents of an RSSM state: Gaussian (PlaNet, Dreamer v1) or categorical (DreamerV2, DreamerV3).

Both are described by a tensor of distribution parameters [..., s, p] and sampled from one random number per variable,
which a simulator can supply. Samples are differentiable, and the KL divergence has a closed form.

Dimensions: s variables, c classes, p parameters per variable (c log-probabilities, or mean and standard deviation).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.seeds import seeded_normal, seeded_uniform
from vwm.nn.precision import at_least_float32


class StochasticLatent(Protocol):
    """Distribution of the stochastic part of a state.

    Attributes:
        num_outputs: Number of network outputs that describe the distribution.
        sample_size: Size of a sample as a vector.
        num_variables: s.
    """

    @property
    def num_outputs(self) -> int: ...

    @property
    def sample_size(self) -> int: ...

    @property
    def num_variables(self) -> int: ...

    def distribution_parameters(self, outputs: Tensor) -> Tensor:
        """Convert network outputs to parameters, at least float32: [..., num_outputs] -> [..., s, p]."""
        ...

    def sample_noise(self, parameters: Tensor) -> Tensor:
        """Draw the noise that ``sample`` needs from torch's generator: [..., s, p] -> [..., s]."""
        ...

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """Return noise as a function of one seed per batch entry: int64 [b] -> [b, s]."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Return a sample [..., sample_size] that is differentiable with respect to the parameters."""
        ...

    def kl_divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """Return KL(p || q) in nats, summed over the variables: parameters [..., s, p] each -> [...]."""
        ...


class GaussianLatent(NamedTuple):
    """Independent normal variables with std = softplus(output) + min_std (arXiv 1811.04551, appendix A).

    Attributes:
        num_variables: s.
        min_std: Smallest standard deviation, which keeps the KL divergence finite.
    """

    num_variables: int
    min_std: float = 0.1

    @property
    def num_outputs(self) -> int:
        """See ``StochasticLatent``."""
        return 2 * self.num_variables

    @property
    def sample_size(self) -> int:
        """See ``StochasticLatent``."""
        return self.num_variables

    def distribution_parameters(self, outputs: Tensor) -> Tensor:
        """See ``StochasticLatent``: means and standard deviations."""
        mean, std_logit = at_least_float32(outputs).chunk(2, dim=-1)
        return torch.stack((mean, F.softplus(std_logit) + self.min_std), dim=-1)

    def sample_noise(self, parameters: Tensor) -> Tensor:
        """See ``StochasticLatent``: standard normal."""
        return torch.randn_like(parameters[..., 0])

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return seeded_normal(seed, self.num_variables)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """See ``StochasticLatent``: the reparametrized sample mean + std * noise."""
        mean, std = parameters.unbind(-1)
        return mean + std * noise.to(std.dtype)

    def kl_divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        p_mean, p_std = p.unbind(-1)
        q_mean, q_std = q.unbind(-1)
        distance = ((p_mean - q_mean) / q_std).square()
        return (0.5 * ((p_std / q_std).square() + distance - 1) + (q_std / p_std).log()).sum(-1)


class CategoricalLatent(NamedTuple):
    """Independent categorical variables as one-hot vectors with straight-through gradients.

    Source: DreamerV2 (arXiv 2010.02193), algorithm 1.

    Attributes:
        num_variables: s.
        num_classes: c.
        unimix: Weight of a uniform distribution that is mixed in, so that no class has probability 0 (DreamerV3).
    """

    num_variables: int
    num_classes: int
    unimix: float = 0.0

    @property
    def num_outputs(self) -> int:
        """See ``StochasticLatent``."""
        return self.num_variables * self.num_classes

    @property
    def sample_size(self) -> int:
        """See ``StochasticLatent``."""
        return self.num_variables * self.num_classes

    def distribution_parameters(self, outputs: Tensor) -> Tensor:
        """See ``StochasticLatent``: log-probabilities."""
        logits = at_least_float32(outputs).unflatten(-1, (self.num_variables, self.num_classes))
        if not self.unimix:
            return logits.log_softmax(-1)
        return (logits.softmax(-1) * (1 - self.unimix) + self.unimix / self.num_classes).log()

    def sample_noise(self, parameters: Tensor) -> Tensor:
        """See ``StochasticLatent``: uniform in [0, 1)."""
        return torch.rand_like(parameters[..., 0])

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return seeded_uniform(seed, self.num_variables)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """See ``StochasticLatent``: the class by inverse transform sampling (the noise indexes the cumulative sum)."""
        probabilities = parameters.exp()
        cumulative = probabilities.detach().cumsum(-1)
        # The last cumulative probability may round to less than 1, so the last class takes the whole remainder.
        classes = (noise[..., None].to(cumulative.dtype) >= cumulative[..., :-1]).sum(-1)
        one_hot = F.one_hot(classes, self.num_classes).to(probabilities.dtype)
        return (one_hot + (probabilities - probabilities.detach())).flatten(-2)

    def kl_divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return (p.exp() * (p - q)).flatten(-2).sum(-1)
