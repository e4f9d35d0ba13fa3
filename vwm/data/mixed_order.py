"""A clip order that draws from several sources by weight: data sets, or parts of one.

Of W = the sum of the weights as whole numbers, every W consecutive clips since the start of the training hold exactly
as many clips of each source as its weight says, in an order that the seed decides. Which clip of a source comes next
follows from how many came before, so that the order stays a pure function of (seed, epoch, position, data).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vwm.data.clip_order import ClipAddress

MAX_PERIOD = 1_000_000
"""The largest sum of weights as whole numbers: a block has at most as many clips, shuffled at once."""


class ClipSequence(Protocol):
    """What ``ClipOrder`` and ``MixedOrder`` are: clips by (epoch, position), the same for equal arguments."""

    seed: int
    span: int
    index_hash: str

    def __len__(self) -> int: ...

    def address(self, epoch: int, position: int) -> ClipAddress: ...


class ClipSource(NamedTuple):
    """Clips from which a mixture draws.

    Attributes:
        name: for reports.
        order: of its clips; its epochs follow each other without end.
        weight: above 0; only the ratios of weights count.
    """

    name: str
    order: ClipSequence
    weight: Fraction


class MixedOrder:
    """An order of clips from several sources.

    Args:
        sources: the sources.
        seed: seed of the order in which sources take turns.
        length: clips per epoch; None: as many as all sources have together.
        branch: numbers that make the order independent of others with the same seed.

    Attributes:
        period: W, the sum of the weights as whole numbers.
        index_hash: hash of the sources' hashes and weights.

    Raises:
        ValueError: there is no source, or the weights have too many digits.
    """

    def __init__(
        self, sources: Sequence[ClipSource], seed: int, length: int | None = None, branch: tuple[int, ...] = ()
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source of clips")
        self.sources = tuple(sources)
        self.weights = whole_weights([source.weight for source in sources])
        self.period = sum(self.weights)
        self.seed = seed
        self.span = sources[0].order.span
        self._length = sum(len(source.order) for source in sources) if length is None else length
        self._branch = branch
        parts = [f"{weight}:{source.order.index_hash}" for weight, source in zip(self.weights, sources, strict=True)]
        self.index_hash = hashlib.blake2b(";".join(parts).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return self._length

    def address(self, epoch: int, position: int) -> ClipAddress:
        """Return the clip at a position of an epoch. Raises IndexError past the end."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside an epoch of {len(self)} clips")
        block, place = divmod(epoch * len(self) + position, self.period)
        turns, before = self._turns(block)
        source = int(turns[place])
        order = self.sources[source].order
        return order.address(*divmod(block * self.weights[source] + int(before[place]), len(order)))

    def count_drawn(self, clips: int) -> list[int]:
        """Return how many of the first clips of the training, in order and over all epochs, come from each source."""
        block, rest = divmod(clips, self.period)
        drawn = np.bincount(self._turns(block)[0][:rest], minlength=len(self.sources))
        return [block * weight + int(count) for weight, count in zip(self.weights, drawn, strict=True)]

    @lru_cache(maxsize=4)  # noqa: B019 (the order lives as long as its loader)
    def _turns(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each clip of a block, and how many clips of that source come before it in the block."""
        seeds = np.random.SeedSequence((self.seed, 4, block), spawn_key=self._branch)
        turns = np.repeat(np.arange(len(self.weights)), self.weights)
        turns = np.random.Generator(np.random.Philox(seeds)).permutation(turns)
        before = np.empty(self.period, np.int64)
        for source, weight in enumerate(self.weights):
            before[turns == source] = np.arange(weight)
        return turns, before


def whole_weights(weights: Sequence[Fraction]) -> list[int]:
    """Return the smallest whole numbers in the ratio of weights.

    Raises:
        ValueError: a weight is not above 0, or the numbers are too large.
    """
    if any(weight <= 0 for weight in weights):
        raise ValueError(f"weights must be above 0, got {', '.join(f'{float(w):g}' for w in weights)}")
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    if sum(whole) > MAX_PERIOD:
        raise ValueError(
            f"weights {', '.join(f'{float(w):g}' for w in weights)}: as whole numbers in the same ratio they add up to "
            f"{sum(whole):,}, more than {MAX_PERIOD:,}: round them, as in 3 and 1"
        )
    return whole
