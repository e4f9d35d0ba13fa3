"""The search: it finds, and it goes on where it stood."""

import numpy as np
import pytest

from vwm.rl.algorithms.cma_es import CMAESSearch


def fitness(population: np.ndarray) -> np.ndarray:
    return -((population - np.arange(5)) ** 2).sum(1)


def search(generations: int) -> CMAESSearch:
    found = CMAESSearch(np.zeros(5), 0.5, 12, seed=3)
    for _ in range(generations):
        found.tell(fitness(found.ask()))
    return found


def test_it_climbs():
    assert np.abs(search(80).mean - np.arange(5)).max() < 1e-3


def test_told_again_it_stands_where_it_stood_and_goes_on_the_same():
    whole, again = search(20), CMAESSearch(np.zeros(5), 0.5, 12, seed=3)
    again.again(np.stack(whole.told[:12]))
    for _ in range(8):
        again.tell(fitness(again.ask()))
    assert np.array_equal(again.mean, whole.mean) and again.sigma == whole.sigma
    assert np.array_equal(again.ask(), whole.ask())


def test_the_seed_decides_and_numpy_s_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.random()
    np.random.seed(0)
    one = search(2)
    assert np.random.random() == before
    other = CMAESSearch(np.zeros(5), 0.5, 12, seed=4)
    assert not np.array_equal(one.ask(), other.ask())


def test_what_is_no_number_is_refused():
    found = search(1)
    found.ask()
    with pytest.raises(FloatingPointError, match="not finite"):
        found.tell(np.full(12, np.nan))
    for settings in ({"population": 3}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="at least 4"):
            CMAESSearch(np.zeros(5), **{"sigma": 0.5, "population": 12, "seed": 0, **settings})
