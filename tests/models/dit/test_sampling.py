"""Sampling frames: the cache gives what recomputing gives, for every prediction type."""

from itertools import pairwise

import pytest
import torch
from factories import dit

from vwm.core.seeds import fold_in, seeded_normal
from vwm.models.dit.network import NoisyFrames
from vwm.models.dit.noise_schedule import add_noise, sampler_step, sampling_signal_levels
from vwm.models.dit.sampling import (
    DiffusionSampling,
    check_diffusion_sampling,
    finest_step_index,
    make_noisy_context,
    observe_latents,
    sample_latent_clip,
    sample_latent_frame,
)

FRAMES = 7
KINDS = {
    "velocity": {},
    "v": {"prediction": "v"},
    "shortcut": {"prediction": "clean", "num_step_sizes": 3},
    "full": {"attention": "full"},
    "sinks-memory": {"sink_frames": 1, "memory_frames": 1, "memory_every": 2},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_cached_sampling_equals_recomputing_the_whole_clip(kind):
    """Also past the window: two layers of time attention with a window of 4 reach at most 6 frames back."""
    network, sampling = dit(**KINDS[kind]).double().eval(), DiffusionSampling(steps=4, context_noise=0.2)
    actions, seed = torch.arange(2 * FRAMES).view(2, FRAMES) % 4, torch.tensor([3, 4])
    action_embedding = network.embed_previous_actions(actions[:, 1:], 2, FRAMES)
    clip = torch.randn(2, 1, 4, 4, 3, dtype=torch.float64)
    state, _ = observe_latents(network, network.init_state(2), clip, action_embedding[:, :1], seed, 0.2)
    for i in range(1, FRAMES):
        frame = sample_latent_frame(network, state, action_embedding[:, i : i + 1], fold_in(seed, i), sampling)
        x = seeded_normal(fold_in(seed, i), 1, 4, 4, 3).double()
        past = torch.stack(
            [seeded_normal(fold_in(seed, torch.tensor(j)), 4, 4, 3).double() for j in range(i)], dim=1
        )  # the noise of frame j of each world
        signal = torch.full((2, i), 0.8, dtype=torch.float64)
        past = add_noise(network.prediction, clip, past, signal)
        for level, next_level in pairwise(sampling_signal_levels(4)):
            now = torch.full((2, 1), level, dtype=torch.float64)
            steps = None
            if network.num_step_sizes:
                steps = torch.cat((finest_step_index(network, signal), torch.full((2, 1), 2)), dim=1)
            frames = NoisyFrames(
                torch.cat((past, x), 1), torch.cat((signal, now), 1), steps, action_embedding[:, : i + 1]
            )
            x = sampler_step(
                network.prediction, x, network(frames).prediction[:, -1:], now, torch.full_like(now, next_level)
            )
        torch.testing.assert_close(frame, x, rtol=0, atol=1e-9)
        clip = torch.cat((clip, frame), dim=1)
        state, _ = observe_latents(network, state, frame, action_embedding[:, i : i + 1], seed, 0.2)


@pytest.mark.parametrize("prediction", ["velocity", "clean", "v"])
def test_without_context_noise_the_past_is_the_clean_latents_at_the_highest_signal_level(prediction):
    network, clip = dit(prediction=prediction).double().eval(), torch.randn(1, 3, 4, 4, 3, dtype=torch.float64)
    action_embedding, noise = network.embed_previous_actions(None, 1, 3), torch.randn_like(clip)
    past = make_noisy_context(network, clip, noise, action_embedding, context_noise=0.0)
    torch.testing.assert_close(past.latents, clip, rtol=0, atol=1e-12)
    assert (past.signal == 1).all()
    noisy = network(past._replace(signal=torch.full_like(past.signal, 0.8)))  # the level itself is an input
    assert not torch.allclose(noisy.features, network(past).features, atol=1e-4)


def test_guidance_extrapolates_from_the_unconditional_frame():
    network, seed = dit().double().eval(), torch.tensor([1])
    action_embedding = network.embed_actions(torch.tensor([[2]]))
    nothing = network.embed_previous_actions(None, 1, 1)
    state = network.init_state(1)
    with_action, free, half, twice = (
        sample_latent_frame(network, state, use, seed, DiffusionSampling(steps=1, guidance=scale))
        for use, scale in ((action_embedding, 1.0), (nothing, 1.0), (action_embedding, 0.5), (action_embedding, 2.0))
    )
    torch.testing.assert_close(half, (with_action + free) / 2, rtol=0, atol=1e-9)
    torch.testing.assert_close(twice, 2 * with_action - free, rtol=0, atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_sampled_clips_keep_their_context_and_depend_on_seed_and_actions(causal):
    network = dit(causal=causal).double().eval()
    context = torch.randn(2, 2, 4, 4, 3, dtype=torch.float64)
    action_embedding = network.embed_previous_actions(torch.zeros(2, 5, dtype=torch.int64), 2, 6)
    other = network.embed_previous_actions(torch.ones(2, 5, dtype=torch.int64), 2, 6)
    draws = [
        sample_latent_clip(network, context, use, torch.tensor(s), DiffusionSampling())
        for use, s in (
            (action_embedding, [1, 2]),
            (action_embedding, [1, 2]),
            (action_embedding, [3, 4]),
            (other, [1, 2]),
        )
    ]
    assert draws[0].shape == (2, 6, 4, 4, 3) and torch.equal(draws[0][:, :2], context)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])


def test_sampled_frames_do_not_depend_on_the_batch():
    network = dit().eval()
    action_embedding = network.embed_actions(torch.tensor([[0], [1], [2]]))
    seeds = torch.tensor([5, 6, 7])
    together = sample_latent_frame(network, network.init_state(3), action_embedding, seeds, DiffusionSampling())
    alone = sample_latent_frame(network, network.init_state(1), action_embedding[1:2], seeds[1:2], DiffusionSampling())
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_rejects_invalid_sampling_settings():
    shortcut = dit(prediction="clean", num_step_sizes=3)
    for network, sampling, message in (
        (shortcut, DiffusionSampling(steps=3), r"steps=3 must be one of \[1, 2, 4\]"),
        (shortcut, DiffusionSampling(steps=2, shift=2.0), "shift=2.0 must be 1"),
        (dit(), DiffusionSampling(steps=0), "steps must be 1 or more"),
        (dit(), DiffusionSampling(context_noise=1.0), "context_noise"),
    ):
        with pytest.raises(ValueError, match=message):
            check_diffusion_sampling(network, sampling)
