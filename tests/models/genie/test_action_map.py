"""True actions as mixtures of latent ones: initialized by counts, trained, merged into a plain embedding."""

import pytest
import torch
from torch import nn

from vwm.models.genie.action_map import LatentActionMap, count_action_pairs


def made() -> LatentActionMap:
    torch.manual_seed(0)
    return LatentActionMap(3, nn.Embedding(4, 5).double()).double()


def test_mixture_weights_start_as_smoothed_frequencies():
    chosen, counts = made(), torch.tensor([[900, 0, 100, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    chosen.initialize(counts)
    overall = (counts.sum(0) + 0.25) / (counts.sum() + 1)  # 1001 transitions and one spread evenly
    expected = (counts + overall) / (counts.sum(1, keepdim=True) + 1)
    torch.testing.assert_close(chosen.mixture_weights(), expected.double())
    torch.testing.assert_close(chosen.mixture_weights()[2], overall.double())  # without counts: the overall frequencies
    assert chosen.mixture_weights()[0, 0] > 0.89


def test_an_action_that_maps_to_one_latent_action_has_its_embedding():
    chosen = made()
    chosen.initialize(torch.eye(3, 4).long() * 10**9)
    torch.testing.assert_close(chosen(torch.arange(3)), chosen.latents.weight[:3], rtol=0, atol=1e-7)


def test_the_merged_embedding_is_equal_and_only_the_map_gets_gradients():
    chosen, actions = made(), torch.tensor([[0, 2], [1, 1]])
    chosen.latents.requires_grad_(False)
    before = chosen(actions)
    before.square().sum().backward()
    assert chosen.logits.grad.abs().sum() > 0 and chosen.latents.weight.grad is None
    torch.testing.assert_close(chosen.to_embedding()(actions), before, rtol=0, atol=1e-12)


def test_action_pairs_are_counted():
    generator = torch.Generator().manual_seed(0)
    actions, latents = (torch.randint(size, (7, 9), generator=generator) for size in (3, 4))
    counts = count_action_pairs(actions, latents, (3, 4))
    for a in range(3):
        for k in range(4):
            assert counts[a, k] == ((actions == a) & (latents == k)).sum()


def test_rejects_counts_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"must be \[3, 4\] \(true actions x latent actions\), got \[3, 8\]"):
        made().initialize(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="num_actions must be 1 or more, got 0"):
        LatentActionMap(0, nn.Embedding(4, 5))
