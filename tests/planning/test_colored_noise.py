"""Colored noise: standard normal at every step, correlated over time, independent of the batch."""

import pytest
import torch

from vwm.core.seeds import seeded_normal, world_seeds
from vwm.planning.colored_noise import draw_colored_noise


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("horizon", [1, 2, 7, 24])
def test_every_step_is_standard_normal(exponent, horizon):
    noise = draw_colored_noise(world_seeds(0, 4), 5000, horizon, 2, exponent)
    assert noise.shape == (4, 5000, horizon, 2) and noise.dtype == torch.float32
    assert noise.mean((0, 1, 3)).abs().max() < 0.03 and (noise.std((0, 1, 3)) - 1).abs().max() < 0.03


def test_white_noise_is_unfiltered_and_larger_exponents_are_more_correlated():
    seeds = world_seeds(1, 2)
    assert torch.equal(draw_colored_noise(seeds, 3, 8, 2, 0.0), seeded_normal(seeds, 3, 8, 2))
    correlation, sum_std = [], []
    for exponent in (0.0, 1.0, 2.0, 3.0):
        noise = draw_colored_noise(world_seeds(0, 1), 20000, 16, 1, exponent)[0, :, :, 0]
        correlation.append((noise[:, 1:] * noise[:, :-1]).mean())
        sum_std.append(noise.sum(1).std())
    assert abs(correlation[0]) < 0.01 and sum_std[0] == pytest.approx(4, rel=0.02)  # the square root of the horizon
    assert sorted(correlation) == correlation and sorted(sum_std) == sum_std and sum_std[2] > 2.5 * sum_std[0]


def test_power_falls_with_the_frequency_by_the_exponent():
    # Before truncation the series is periodic, so its spectrum is the filter itself.
    noise = draw_colored_noise(world_seeds(0, 1), 4000, 64, 1, 1.0)[0, :, :, 0]
    power = torch.fft.rfft(noise * torch.hann_window(64)).abs().square().mean(0)
    assert power[4] / power[16] == pytest.approx(4, rel=0.15)


def test_noise_does_not_depend_on_the_batch():
    seeds = world_seeds(3, 3)
    batched = draw_colored_noise(seeds, 5, 6, 2, 2.0)
    assert torch.allclose(batched[1:2], draw_colored_noise(seeds[1:2], 5, 6, 2, 2.0), atol=1e-6)
    assert not torch.allclose(batched[0], batched[1])
