"""CMA-ES finds a maximum, and resumes exactly."""

import numpy as np
import pytest

from vwm.rl.algorithms.cma_es import CMAESSearch


def fitness(population: np.ndarray) -> np.ndarray:
    return -((population - np.arange(5)) ** 2).sum(1)


def run_search(generations: int) -> CMAESSearch:
    search = CMAESSearch(np.zeros(5), 0.5, 12, seed=3)
    for _ in range(generations):
        search.tell(fitness(search.ask()))
    return search


def test_finds_the_maximum():
    assert np.abs(run_search(80).mean - np.arange(5)).max() < 1e-3


def test_a_replayed_search_continues_exactly():
    uninterrupted, resumed = run_search(20), CMAESSearch(np.zeros(5), 0.5, 12, seed=3)
    resumed.replay(np.stack(uninterrupted.fitness_history[:12]))
    for _ in range(8):
        resumed.tell(fitness(resumed.ask()))
    assert np.array_equal(resumed.mean, uninterrupted.mean) and resumed.sigma == uninterrupted.sigma
    assert np.array_equal(resumed.ask(), uninterrupted.ask())


def test_results_depend_on_the_seed_and_not_on_numpys_generator():
    np.random.seed(0)
    before = np.random.random()
    np.random.seed(0)
    one = run_search(2)
    assert np.random.random() == before
    other = CMAESSearch(np.zeros(5), 0.5, 12, seed=4)
    assert not np.array_equal(one.ask(), other.ask())


def test_rejects_fitness_that_is_not_finite_and_wrong_settings():
    search = run_search(1)
    search.ask()
    with pytest.raises(FloatingPointError, match="not finite"):
        search.tell(np.full(12, np.nan))
    for settings in ({"population": 3}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="at least 4"):
            CMAESSearch(np.zeros(5), **{"sigma": 0.5, "population": 12, "seed": 0, **settings})
