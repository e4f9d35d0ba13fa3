"""The paths from noise to data: exact inverses, and the steps of diffusers' schedulers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from vwm.models.dit.noise_schedule import (
    PREDICTION_TYPES,
    add_noise,
    predicted_clean_and_noise,
    prediction_target,
    sampler_step,
    sampling_signal_levels,
)


def pair(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(2, 3, 4, 4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    return clean, noise, torch.rand(2, 3, dtype=torch.float64, generator=generator) * 0.98 + 0.01


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_true_prediction_recovers_data_and_noise(kind):
    clean, noise, signal = pair()
    x = add_noise(kind, clean, noise, signal)
    found = predicted_clean_and_noise(kind, x, prediction_target(kind, clean, noise, signal), signal)
    torch.testing.assert_close(found[0], clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], noise, rtol=0, atol=1e-10)
    onward = signal + (1 - signal) / 2
    step = sampler_step(kind, x, prediction_target(kind, clean, noise, signal), signal, onward)
    torch.testing.assert_close(step, add_noise(kind, clean, noise, onward), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_signal_0_is_noise_and_signal_1_is_data(kind):
    clean, noise, signal = pair()
    torch.testing.assert_close(add_noise(kind, clean, noise, torch.zeros_like(signal)), noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(add_noise(kind, clean, noise, torch.ones_like(signal)), clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_velocity_steps_equal_diffusers_flow_match_scheduler(shift):
    noise = pair()[1]
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    grid = sampling_signal_levels(5, shift)
    scheduler.set_timesteps(sigmas=[1 - s for s in grid[:-1]])
    x = y = noise.float()
    for i, (here, onward) in enumerate(pairwise(grid)):
        predicted = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        x = sampler_step("velocity", x, predicted, torch.full((2, 3), here), torch.full((2, 3), onward))
        y = scheduler.step(-predicted, scheduler.timesteps[i], y).prev_sample  # diffusers' velocity points to the noise
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_v_steps_equal_diffusers_ddim_scheduler():
    """At equal ratios of data to noise; diffusers spaces its steps by another schedule."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(5)
    shares = scheduler.alphas_cumprod.double()

    def level(step: int) -> float:
        share = shares[step] if step >= 0 else scheduler.final_alpha_cumprod.double()
        return float(torch.asin(share.sqrt()) / (math.pi / 2))

    x = y = pair()[1]
    for i, step in enumerate(scheduler.timesteps.tolist()):
        predicted = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        here, onward = level(step), level(step - 200)
        signals = (torch.full((2, 3), s, dtype=torch.float64) for s in (here, onward))
        x = sampler_step("v", x, predicted, *signals)
        y = scheduler.step(predicted, step, y).prev_sample
    torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_signal_levels_are_evenly_spaced_and_a_shift_lowers_them():
    assert sampling_signal_levels(4) == [0, 0.25, 0.5, 0.75, 1]
    shifted = sampling_signal_levels(4, 3.0)
    assert (
        shifted[0] == 0
        and shifted[-1] == 1
        and all(s < g for s, g in zip(shifted[1:-1], sampling_signal_levels(4)[1:-1], strict=True))
    )
