"""Represent scalars of any magnitude as distributions over bins.

DreamerV3 (arXiv 2301.04104, section "Robust predictions") averages the values of the bins, TD-MPC2 (arXiv 2310.16828,
section 3.1) their symlogs, which pulls the mean of a wide distribution toward 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.nn.precision import BinsModule, at_least_float32


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): compresses large values and leaves small ones almost unchanged."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


def split_position(position: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return the bin below a position 0..bins - 1, int64 [...], and the share of the next one, which is NaN for NaN."""
    lower = position.floor().clamp(max=bins - 2)
    return lower.nan_to_num(nan=0.0).long(), position - lower


def neighbor_weights(lower: Tensor, share: Tensor, bins: int) -> Tensor:
    """Return weights [..., bins]: ``share`` [...] at the bin after ``lower``, int64 [...], and the rest there."""
    rest = (1 - share)[..., None]
    return F.one_hot(lower, bins) * rest + F.one_hot(lower + 1, bins) * share[..., None]


def neighbor_cross_entropy(logits: Tensor, lower: Tensor, share: Tensor) -> Tensor:
    """Return the cross-entropy of ``neighbor_weights``, which it does not make: [..., bins] -> [...].

    Args:
        logits: [..., bins].
        lower, share: see ``neighbor_weights``; they may broadcast.
    """
    logs = at_least_float32(logits).log_softmax(-1)
    neighbors = torch.stack((lower, lower + 1), dim=-1).expand(*logs.shape[:-1], 2)
    low, high = logs.gather(-1, neighbors).unbind(-1)
    return -torch.lerp(low, high, share.to(logs.dtype).expand(logs.shape[:-1]))


class SymexpTwoHot(BinsModule):
    """Bins evenly spaced in symlog space. A number is encoded as weights of the two nearest bins (DreamerV3).

    Args:
        bins: number of bins, odd, so that one of them is at 0.
        symlog_limit: symlog of the outermost bin (20: numbers up to 4.8e8).
    """

    def __init__(self, bins: int = 255, symlog_limit: float = 20.0) -> None:
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins={bins} must be odd and at least 3")
        # Built from its positive half, so that the mean of a symmetric distribution is exactly 0.
        with torch.device("cpu"):  # on the meta device, torch would import its compiler to compute it
            half = symexp(torch.linspace(0, symlog_limit, bins // 2 + 1))
        self.register_buffer("values", torch.cat((-half[1:].flip(0), half)), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """[...] -> weights [..., bins], whose mean is x, clamped to the range of the bins."""
        return neighbor_weights(*self._neighbors(x), len(self.values))

    def mean(self, logits: Tensor) -> Tensor:
        """[..., bins] -> the mean of the distribution [...]; symmetric parts cancel exactly."""
        p, half = at_least_float32(logits).softmax(-1), len(self.values) // 2
        positive = p[..., half + 1 :] - p[..., :half].flip(-1)
        return (positive * self.values[half + 1 :]).sum(-1)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy, [..., bins] and [...] -> [...]."""
        return neighbor_cross_entropy(logits, *self._neighbors(x))

    def _neighbors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bin below each number, and the share of the next one."""
        values = self.values
        x = x.to(values.dtype).clamp(values[0], values[-1])
        lower = torch.searchsorted(values, x.contiguous()).clamp(1, len(values) - 1) - 1
        low, high = values[lower], values[lower + 1]
        return lower, (x - low) / (high - low)


class SymlogTwoHot(BinsModule):
    """Bins evenly spaced in symlog space, where numbers are encoded and the mean is computed (TD-MPC2).

    Args:
        bins: number of bins, at least 2.
        symlog_limit: symlog of the outermost bin (10: numbers up to 22025).
    """

    def __init__(self, bins: int = 101, symlog_limit: float = 10.0) -> None:
        super().__init__()
        if bins < 2 or not symlog_limit > 0:
            raise ValueError(f"bins must be 2 or more and symlog_limit above 0, got {bins} and {symlog_limit}")
        self.symlog_limit = symlog_limit
        self.register_buffer("values", torch.linspace(-symlog_limit, symlog_limit, bins), persistent=False)

    def mean(self, logits: Tensor) -> Tensor:
        """[..., bins] -> symexp of the mean, [...]."""
        return symexp(at_least_float32(logits).softmax(-1) @ self.values)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy, [..., bins] and [...], which may broadcast -> [...]."""
        bins, limit = len(self.values), self.symlog_limit
        x = x.to(torch.promote_types(logits.dtype, torch.float32))
        position = (symlog(x).clamp(-limit, limit) + limit) * ((bins - 1) / (2 * limit))
        return neighbor_cross_entropy(logits, *split_position(position, bins))
