"""CMA-ES (Hansen, arXiv 1604.00772) with pycma, resumable exactly.

A search is a function of its start, its seed and the fitness values it received. Only these are saved, and resuming
replays them: nothing is pickled, and no private state of the library is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class CMAESSearch:
    """Maximizes a fitness: ``ask`` for a population, ``tell`` its fitness, repeat.

    Args:
        start: float64 [n], mean of the first population.
        sigma: standard deviation of the first population.
        population: number of candidates per generation.
        seed: of all random numbers; numpy's global generator is not used.

    Raises:
        ImportError: pycma is not installed.
        ValueError: ``population`` is below 4, or ``sigma`` is not positive.
    """

    def __init__(self, start: NDArray[np.float64], sigma: float, population: int, seed: int) -> None:
        try:
            import cma
        except ImportError as error:
            raise ImportError(f"CMA-ES needs pycma ({error}): pip install -e '.[evolution]' in the clone") from error
        if population < 4 or sigma <= 0:
            raise ValueError(f"population={population} must be at least 4, sigma={sigma} positive")
        generator = np.random.RandomState(seed)  # pycma's ``randn`` option takes the interface of this class
        options = {"popsize": population, "randn": generator.randn, "seed": np.nan, "verbose": -9}
        self._strategy: Any = cma.CMAEvolutionStrategy(start, sigma, options)
        self.fitness_history: list[NDArray[np.float64]] = []

    def ask(self) -> NDArray[np.float64]:
        """Return the next population, [p, n]."""
        self._population = self._strategy.ask()
        return np.stack(self._population)

    def tell(self, fitness: NDArray[np.float64]) -> None:
        """Update the distribution with the fitness of the last population, [p].

        Raises:
            FloatingPointError: a value is not finite.
        """
        if not np.isfinite(fitness).all():
            raise FloatingPointError(f"a fitness is not finite: {fitness}")
        self._strategy.tell(self._population, (-fitness).tolist())
        self.fitness_history.append(np.array(fitness, np.float64))

    def replay(self, fitness_history: NDArray[np.float64]) -> None:
        """Repeat a search with the same settings from its fitness values [g, p]."""
        for fitness in fitness_history:
            self.ask()
            self.tell(fitness)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of the distribution, [n]: the best estimate where fitness is noisy."""
        return np.array(self._strategy.mean)

    @property
    def sigma(self) -> float:
        """Step size of the distribution."""
        return float(self._strategy.sigma)
