"""The sampler against solutions that are known, and the upsampler as a tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diamond_worlds import csgo_world, diamond_world
from torch import Tensor

from vwm.core.seeds import seeded_normal
from vwm.models.diamond.sampling import DiamondSampling, noise_levels, sample_frame

SPREAD = 0.5


@dataclass
class GaussianFrames:
    """The ideal denoiser of independent pixels from N(0, 0.5^2): the mean of a clean frame given a noisy one."""

    past: list[Tensor] = field(default_factory=list)
    noisy: list[Tensor] = field(default_factory=list)

    def precondition(self, sigma: Tensor) -> Any:
        return SimpleNamespace(sigma=sigma)

    def __call__(self, noisy: Tensor, scales: Any, past: Tensor, actions: Tensor | None, past_sigma: Any) -> Tensor:
        self.past.append(past)
        self.noisy.append(noisy)
        return noisy

    def clean(self, noisy: Tensor, predicted: Tensor, scales: Any) -> Tensor:
        return noisy * SPREAD**2 / (SPREAD**2 + scales.sigma.square())[:, None, None, None]


def run(denoiser: Any, past: Tensor | None = None, **settings: Any) -> Tensor:
    past = torch.zeros(2, 1, 3, 8, 8, dtype=torch.float64) if past is None else past
    seeds = torch.arange(2)

    def noise(draw: int) -> Tensor:
        return seeded_normal(seeds + 100 * draw, 3, 8, 8).to(past.dtype)

    def past_noise(draw: int) -> Tensor:
        return seeded_normal(seeds + 100 * draw + 7, *past.shape[1:]).to(past.dtype)

    return sample_frame(denoiser, past, None, noise, past_noise, DiamondSampling(**settings))


@pytest.mark.parametrize("order", [1, 2])
def test_more_steps_approach_the_solution_of_the_equation_at_the_rate_of_the_order(order: int) -> None:
    start = seeded_normal(torch.arange(2), 3, 8, 8).double()
    expected = start * SPREAD / math.sqrt(SPREAD**2 + 5**2)  # at noise level 0, of the probability flow
    errors = [(run(GaussianFrames(), steps=steps, order=order) - expected).abs().max().item() for steps in (16, 32, 64)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(order - 0.35 < rate < order + 0.6 for rate in rates), (errors, rates)


def test_the_noise_levels_are_those_of_the_paper() -> None:
    levels = noise_levels(DiamondSampling(steps=3), torch.float64).tolist()
    middle = ((5 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert levels == pytest.approx([5.0, middle, 0.002, 0.0])
    assert noise_levels(DiamondSampling(steps=1), torch.float64).tolist() == pytest.approx([5.0, 0])


def test_churn_adds_its_noise_at_the_levels_that_it_names() -> None:
    plain, churned, elsewhere = GaussianFrames(), GaussianFrames(), GaussianFrames()
    run(plain, steps=1)
    run(churned, steps=1, churn=10.0, churn_noise=0.9)
    run(elsewhere, steps=1, churn=10.0, churn_max=4.0)
    added = churned.noisy[0] - plain.noisy[0]
    scale = 0.9 * math.sqrt((5 * math.sqrt(2)) ** 2 - 5**2)  # the level rises by a factor of the root of 2 at most
    torch.testing.assert_close(added, seeded_normal(torch.arange(2) + 100, 3, 8, 8).double() * scale)
    assert torch.equal(elsewhere.noisy[0], plain.noisy[0])


def test_noise_of_the_past_is_new_in_every_step_and_adds_up() -> None:
    denoiser, past = GaussianFrames(), torch.zeros(2, 4, 3, 8, 8, dtype=torch.float64)
    run(denoiser, past, steps=3, order=2, past_noise=0.2)
    seen = [denoiser.past[i] for i in (0, 2, 4)]  # Heun's steps denoise twice with the same past
    assert torch.equal(denoiser.past[0], denoiser.past[1])
    assert [x.std().item() / 0.2 for x in seen] == pytest.approx([1, math.sqrt(2), math.sqrt(3)], rel=0.1)


def test_settings_that_do_not_fit_are_named() -> None:
    world = diamond_world()
    for changes, message in (
        ({"order": 3}, r"order must be 1 \(Euler\) or 2"),
        ({"sigma_min": 6.0}, "sigma_min < sigma_max"),
        ({"past_noise": 0.1}, "trained without noise on past frames"),
    ):
        with pytest.raises(ValueError, match=message):
            world.with_sampling(**changes)


@torch.no_grad()
def test_the_upsampler_streams_as_it_decodes_whole_clips_and_follows_its_last_frame() -> None:
    tokenizer = csgo_world().tokenizer
    latents = torch.rand(2, 3, 4, 6, 3) * 2 - 1
    whole = tokenizer.decode(latents)
    assert whole.shape == (2, 3, 3, 20, 30) and whole.abs().max() <= 1
    state, first = tokenizer.decode_step(tokenizer.init_decoder(2), latents[:, :1])
    _, rest = tokenizer.decode_step(state, latents[:, 1:])
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, rtol=0, atol=2.1 / 255)
    other = tokenizer.observe(state, -first)._replace(position=state.position)
    assert not torch.equal(tokenizer.decode_step(other, latents[:, 1:])[1], rest)
    seeded = state._replace(seed=state.seed + 1)
    assert not torch.equal(tokenizer.decode_step(seeded, latents[:, 1:])[1], rest)


def test_frames_are_encoded_to_levels_of_low_resolution() -> None:
    tokenizer = csgo_world().tokenizer
    video = torch.full((1, 2, 3, 20, 30), 0.2)
    video[:, 1, :, :, 15:] = -0.6
    latents = tokenizer.encode(video)
    assert latents.shape == (1, 2, 4, 6, 3) and torch.equal(latents, ((latents + 1) * 127.5).round() / 127.5 - 1)
    torch.testing.assert_close(latents[0, 0], torch.full((4, 6, 3), 0.2), rtol=0, atol=0.004)
    assert (latents[0, 1, :, -1] + 0.6).abs().max() < 0.03 and (latents[0, 1, :, 0] - 0.2).abs().max() < 0.03
