"""Evolution of numbers by CMA-ES (Hansen, arXiv 1604.00772), with pycma, so that it can be gone on with exactly.

A search is a function of where it began, its seed and the fitnesses that it was told. Only these are kept, and going on
is telling it all of them again: nothing is pickled, and no private state of a library is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class CMAESSearch:
    """Asks for the fitness of a population, again and again; the larger, the better.

    Args:
        start: float64 [n], the middle of the first population.
        sigma: its deviation.
        population: how many.
        seed: of every draw; numpy's global generator is left alone.

    Raises:
        ImportError: pycma is not installed.
    """

    def __init__(self, start: NDArray[np.float64], sigma: float, population: int, seed: int) -> None:
        try:
            import cma
        except ImportError as error:
            raise ImportError(f"CMA-ES needs pycma ({error}): pip install 'vwm[evolution]'") from error
        if population < 4 or sigma <= 0:
            raise ValueError(f"population={population} must be at least 4, sigma={sigma} positive")
        draws = np.random.RandomState(seed)  # pycma asks for numbers as this class hands them out
        options = {"popsize": population, "randn": draws.randn, "seed": np.nan, "verbose": -9}
        self._search: Any = cma.CMAEvolutionStrategy(start, sigma, options)
        self.told: list[NDArray[np.float64]] = []

    def ask(self) -> NDArray[np.float64]:
        """The population, [p, n]."""
        self._asked = self._search.ask()
        return np.stack(self._asked)

    def tell(self, fitness: NDArray[np.float64]) -> None:
        """What the last population came to, [p].

        Raises:
            FloatingPointError: not all of it are numbers.
        """
        if not np.isfinite(fitness).all():
            raise FloatingPointError(f"a fitness is not finite: {fitness}")
        self._search.tell(self._asked, (-fitness).tolist())
        self.told.append(np.array(fitness, np.float64))

    def again(self, told: NDArray[np.float64]) -> None:
        """Go on where a search like this one stood after it was told [g, p]."""
        for fitness in told:
            self.ask()
            self.tell(fitness)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The middle of the distribution, [n]: the best guess where every fitness is noisy."""
        return np.array(self._search.mean)

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._search.sigma)
