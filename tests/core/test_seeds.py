"""Random numbers are functions of seeds: reproducible, independent of the batch, and uniform."""

import pytest
import torch

from vwm.core.seeds import fold_in, seeded_uniform, world_seeds


def test_random_numbers_of_a_world_do_not_depend_on_its_batch():
    seeds = world_seeds(3, 4)
    assert torch.equal(seeded_uniform(seeds, 2, 50)[2:3], seeded_uniform(seeds[2:3], 2, 50))
    assert len(set(seeds.tolist())) == 4


def test_random_numbers_are_uniform_and_independent():
    samples = seeded_uniform(fold_in(world_seeds(0, 100), torch.arange(100)), 1000).double()
    assert 0 < samples.min() and samples.max() < 1
    assert abs(float(samples.mean()) - 0.5) < 5 * (1 / 12 / samples.numel()) ** 0.5
    assert abs(float((samples**2).mean()) - 1 / 3) < 5e-3
    correlation = torch.corrcoef(torch.stack((samples[:-1].flatten(), samples[1:].flatten())))[0, 1]
    assert abs(float(correlation)) < 0.02
    histogram = torch.histc(samples.float(), 20, 0, 1)
    assert float(((histogram - 5000) ** 2 / 5000).sum()) < 50  # chi-square, 19 degrees of freedom


def test_rejects_seeds_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"int64 \[3\]"):
        world_seeds(torch.zeros(2, dtype=torch.int64), 3)
