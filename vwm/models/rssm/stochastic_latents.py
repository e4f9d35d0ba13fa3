"""The stochastic part of a state: Gaussian (PlaNet, Dreamer v1) or categorical (DreamerV2, DreamerV3) variables.

Both are described by a tensor of parameters [..., s, p], drawn with one random number a variable (so that a simulator
can give its own), differentiable, and have their divergence in closed form.

Legend: s variables, c classes, p parameters a variable (c log-probabilities, or mean and standard deviation).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.seeds import seeded_normal, seeded_uniform


class StochasticLatent(Protocol):
    """What both kinds are.

    Attributes:
        raw: numbers that a network says of a state.
        width: numbers of a drawn state.
        variables: s.
    """

    @property
    def raw(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def variables(self) -> int: ...

    def parameters(self, raw: Tensor) -> Tensor:
        """[..., raw] -> [..., s, p], at least in float32."""
        ...

    def noise(self, parameters: Tensor) -> Tensor:
        """What ``sample`` needs, from torch's generator: [..., s]."""
        ...

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """The same as a function of a seed a world: int64 [b] -> [b, s]."""
        ...

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """A state [..., width] that carries gradients to its parameters."""
        ...

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(p || q) in nats, summed over the variables: [..., s, p] twice -> [...]."""
        ...


class GaussianLatent(NamedTuple):
    """Independent normal variables, reparametrised; std = softplus + min_std (arXiv 1811.04551, appendix A).

    Attributes:
        variables: s.
        min_std: what keeps the divergence finite.
    """

    variables: int
    min_std: float = 0.1

    @property
    def raw(self) -> int:
        """See ``StochasticLatent``."""
        return 2 * self.variables

    @property
    def width(self) -> int:
        """See ``StochasticLatent``."""
        return self.variables

    def parameters(self, raw: Tensor) -> Tensor:
        """See ``StochasticLatent``: means and standard deviations."""
        mean, spread = at_least_float32(raw).chunk(2, dim=-1)
        return torch.stack((mean, F.softplus(spread) + self.min_std), dim=-1)

    def noise(self, parameters: Tensor) -> Tensor:
        """See ``StochasticLatent``: standard normal."""
        return torch.randn_like(parameters[..., 0])

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return seeded_normal(seed, self.variables)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        mean, std = parameters.unbind(-1)
        return mean + std * noise.to(std.dtype)

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        (mean, std), (other, wide) = p.unbind(-1), q.unbind(-1)
        apart = ((mean - other) / wide).square()
        return (0.5 * ((std / wide).square() + apart - 1) + (wide / std).log()).sum(-1)


class CategoricalLatent(NamedTuple):
    """Independent choices as one-hot vectors, with straight-through gradients (arXiv 2010.02193, algorithm 1).

    Attributes:
        variables: s.
        classes: c.
        unimix: share of the uniform distribution that is mixed in, so that no class is ever impossible (DreamerV3).
    """

    variables: int
    classes: int
    unimix: float = 0.0

    @property
    def raw(self) -> int:
        """See ``StochasticLatent``."""
        return self.variables * self.classes

    @property
    def width(self) -> int:
        """See ``StochasticLatent``."""
        return self.variables * self.classes

    def parameters(self, raw: Tensor) -> Tensor:
        """See ``StochasticLatent``: log-probabilities."""
        logits = at_least_float32(raw).unflatten(-1, (self.variables, self.classes))
        if not self.unimix:
            return logits.log_softmax(-1)
        return (logits.softmax(-1) * (1 - self.unimix) + self.unimix / self.classes).log()

    def noise(self, parameters: Tensor) -> Tensor:
        """See ``StochasticLatent``: uniform in [0, 1)."""
        return torch.rand_like(parameters[..., 0])

    def seeded_noise(self, seed: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return seeded_uniform(seed, self.variables)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """See ``StochasticLatent``: the class in whose share of [0, 1) the number falls."""
        probabilities = parameters.exp()
        shares = probabilities.detach().cumsum(-1)
        # The shares may sum to a little less than 1, and the last class has all that is left.
        chosen = (noise[..., None].to(shares.dtype) >= shares[..., :-1]).sum(-1)
        one_hot = F.one_hot(chosen, self.classes).to(probabilities.dtype)
        return (one_hot + (probabilities - probabilities.detach())).flatten(-2)

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """See ``StochasticLatent``."""
        return (p.exp() * (p - q)).flatten(-2).sum(-1)


def at_least_float32(x: Tensor) -> Tensor:
    """float32 of a half-precision tensor; others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
