"""Random numbers as a function of seeds: repeatable, independent of the batch, uniform."""

import pytest
import torch

from vwm.core.seeds import fold_in, seeded_uniform, world_seeds


def test_a_world_of_a_batch_draws_what_it_draws_alone():
    seeds = world_seeds(3, 4)
    assert torch.equal(seeded_uniform(seeds, 2, 50)[2:3], seeded_uniform(seeds[2:3], 2, 50))
    assert len(set(seeds.tolist())) == 4


def test_draws_are_uniform_and_independent():
    draws = seeded_uniform(fold_in(world_seeds(0, 100), torch.arange(100)), 1000).double()
    assert 0 < draws.min() and draws.max() < 1
    assert abs(float(draws.mean()) - 0.5) < 5 * (1 / 12 / draws.numel()) ** 0.5
    assert abs(float((draws**2).mean()) - 1 / 3) < 5e-3
    neighbors = torch.corrcoef(torch.stack((draws[:-1].flatten(), draws[1:].flatten())))[0, 1]
    assert abs(float(neighbors)) < 0.02
    histogram = torch.histc(draws.float(), 20, 0, 1)
    assert float(((histogram - 5000) ** 2 / 5000).sum()) < 50  # chi-square, 19 degrees of freedom


def test_seeds_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"int64 \[3\]"):
        world_seeds(torch.zeros(2, dtype=torch.int64), 3)
