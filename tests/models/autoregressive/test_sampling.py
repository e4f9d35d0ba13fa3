"""Tokens are drawn from the network's distribution, as far as the settings allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from autoregressive_worlds import autoregressive_world, token_dynamics

from vwm.core.seeds import world_seeds
from vwm.core.states import select_worlds
from vwm.models.autoregressive.sampling import (
    TokenSampling,
    sample_next_frame,
    token_probabilities,
)


@pytest.mark.parametrize(
    "sampling",
    [TokenSampling(0.7), TokenSampling(top_k=5), TokenSampling(top_p=0.6), TokenSampling(1.3, top_k=12, top_p=0.8)],
)
def test_probabilities_are_those_of_the_most_likely_tokens(sampling: TokenSampling) -> None:
    """Against a loop over the codes in the order of their probability."""
    logits = 2 * torch.randn(4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, drawn in zip(logits.numpy() / sampling.temperature, token_probabilities(logits, sampling), strict=True):
        order = np.argsort(-row)[: sampling.top_k or None]
        weights = np.exp(row[order])
        weights /= weights.sum()
        expected, reached = np.zeros(20), 0.0
        for code, weight in zip(order, weights, strict=True):
            if reached < sampling.top_p:
                expected[code] = weight
            reached += weight
        normalized = (drawn / drawn.sum()).numpy()
        np.testing.assert_allclose(normalized, expected / expected.sum(), atol=1e-12)


@torch.no_grad()
def test_frames_are_drawn_token_by_token_from_the_networks_distribution() -> None:
    """The joint frequency of two tokens, each of four codes, given the first frame and an action."""
    model = token_dynamics(codebook_size=4, tokens_per_frame=2)
    tokens = torch.tensor([[[1, 3]]])
    first = model.observe(model.init_state(1), tokens, None)
    worlds, action = 4000, torch.tensor([[2]])
    state = select_worlds(first, torch.zeros(worlds, dtype=torch.int64))
    _, drawn = sample_next_frame(model, state, action.expand(worlds, 1), world_seeds(3, worlds), TokenSampling())
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16) / worlds
    expected = torch.zeros(16)
    for code in range(16):
        frame = torch.tensor([[code // 4, code % 4]])
        chances = model.predict_logits(first, frame, action)[0].softmax(-1)
        expected[code] = chances[0, code // 4] * chances[1, code % 4]
    assert (counts - expected).abs().max() < 4 * (expected * (1 - expected) / worlds).sqrt().max()
    greedy = sample_next_frame(model, first, action, world_seeds(3, 1), TokenSampling(temperature=0))[1]
    chances = model.predict_logits(first, greedy, action)[0]
    assert torch.equal(chances.argmax(-1), greedy[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
    ],
)
def test_settings_out_of_range_are_errors(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoregressive_world().with_sampling(**changes)
