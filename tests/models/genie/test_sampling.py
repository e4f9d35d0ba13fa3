"""Draws of MaskGIT's tokens: by threshold as by sorting, by blocks as by the whole cumulative sum."""

from __future__ import annotations

import pytest
import torch

from vwm.models.genie.sampling import smallest
from vwm.nn.categorical_sampling import inverse_transform


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_smallest_values_are_those_that_sorting_finds_also_among_equal_ones(count):
    values = torch.randint(0, 6, (50, 20), generator=torch.Generator().manual_seed(0)).float()
    values[:, ::3] = float("inf")
    expected = torch.zeros_like(values, dtype=torch.bool)
    expected.scatter_(1, values.argsort(dim=-1, stable=True)[:, :count], True)
    assert torch.equal(smallest(values, count), expected)


@pytest.mark.parametrize("codes", [1, 2, 7, 64, 1000])
def test_blocks_give_the_index_of_the_whole_cumulative_sum(codes):
    generator = torch.Generator().manual_seed(codes)
    weights = torch.rand(5, 400, codes, generator=generator, dtype=torch.float64)
    weights *= torch.rand(weights.shape, generator=generator) < 0.7  # a third is never drawn
    weights[..., codes // 2] += 1e-3
    noise = torch.rand(5, 400, generator=generator, dtype=torch.float64)
    noise[0, :2] = torch.tensor([1e-300, 1 - 2**-53], dtype=torch.float64)
    cumulative = weights.cumsum(-1)
    expected = torch.searchsorted(cumulative, (noise * cumulative[..., -1])[..., None]).squeeze(-1)
    drawn = inverse_transform(weights, noise)
    assert torch.equal(drawn, expected)
    assert (weights.gather(-1, drawn[..., None]) > 0).all()


def test_float32_draws_have_the_frequencies_of_their_weights():
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    noise = (torch.arange(100_000) + 0.5) / 100_000
    drawn = inverse_transform(weights.expand(100_000, 5), noise)
    assert torch.allclose(drawn.bincount(minlength=5) / 100_000, weights, atol=2e-5)
