"""CMA-ES (Hansen, arXiv 1604.00772) with pycma, resumable exactly.

A search is a function of its start, its seed and the fitness values it received. Only these are saved, and resuming
replays them: nothing is pickled, and no private state of the library is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class CMAESSearch:
    """A maximization: ``ask`` for a population, ``tell`` its fitness.

    Args:
        start: float64 [n], mean of the first population.
        sigma: its standard deviation.
        population: size of a population.
        seed: of every draw; numpy's global generator is not used.

    Raises:
        ImportError: pycma is not installed.
        ValueError: ``population`` is below 4, or ``sigma`` is not positive.
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
        """Return the next population, [p, n]."""
        self._asked = self._search.ask()
        return np.stack(self._asked)

    def tell(self, fitness: NDArray[np.float64]) -> None:
        """Update the distribution with the fitness of the last population, [p].

        Raises:
            FloatingPointError: a value is not finite.
        """
        if not np.isfinite(fitness).all():
            raise FloatingPointError(f"a fitness is not finite: {fitness}")
        self._search.tell(self._asked, (-fitness).tolist())
        self.told.append(np.array(fitness, np.float64))

    def again(self, told: NDArray[np.float64]) -> None:
        """Replay the fitness values [g, p] of a search with the same settings."""
        for fitness in told:
            self.ask()
            self.tell(fitness)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the distribution, [n]: the best estimate where fitness is noisy."""
        return np.array(self._search.mean)

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._search.sigma)
