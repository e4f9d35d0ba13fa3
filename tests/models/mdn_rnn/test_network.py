"""The MDN-RNN: its mixtures, and streaming equal to the parallel pass."""

import math

import numpy as np
import pytest
import torch
from factories import randomize

from vwm.core.seeds import world_seeds
from vwm.models.mdn_rnn.network import MDNRNN, GaussianMixture, check_mdn_rnn_tokenizer
from vwm.tokenizers.causal_vae import CausalVAE
from vwm.tokenizers.frame_vae import FrameVAE


def network(**changes) -> MDNRNN:
    torch.manual_seed(0)
    settings = {"latent_size": 4, "num_actions": 3, "hidden_size": 16, "num_mixtures": 3, "action_embedding_size": 4}
    return randomize(MDNRNN(**{**settings, **changes})).double().eval()


def mixture(worlds: int) -> GaussianMixture:
    """One mixture, the same in every world."""
    weight = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    mean = torch.tensor([[-2.0, 0.0, 3.0], [0.0, 1.0, -1.0]])
    std = torch.tensor([[0.5, 1.0, 0.2], [2.0, 0.1, 0.7]])
    return GaussianMixture(*(x.expand(worlds, 2, 3) for x in (weight.log(), mean, std.log())))


def test_the_likelihood_equals_the_mixture_formula():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    gaussians = mixture(5)
    weight, mean, std = (
        p.double().numpy() for p in (gaussians.log_weight.exp(), gaussians.mean, gaussians.log_std.exp())
    )
    deviation = (x.double().numpy()[..., None] - mean) / std
    density = (weight * np.exp(-0.5 * deviation**2) / (std * math.sqrt(2 * math.pi))).sum(-1)
    expected = torch.from_numpy(-np.log(density)).float()
    torch.testing.assert_close(gaussians.negative_log_likelihood(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_temperature_divides_the_logits_and_multiplies_the_variances(temperature):
    gaussians = mixture(40000)
    drawn = gaussians.sample(world_seeds(0, 40000), temperature).double()
    weight, mean, std = (p[0].double() for p in (gaussians.log_weight.exp(), gaussians.mean, gaussians.log_std.exp()))
    weight = weight ** (1 / temperature)
    weight = weight / weight.sum(-1, keepdim=True)
    expected = (weight * mean).sum(-1)
    variance = (weight * (temperature * std**2 + mean**2)).sum(-1) - expected**2
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.03, atol=0)


def test_samples_are_a_function_of_the_seed():
    seeds = world_seeds(3, 6)
    one, other = mixture(6).sample(seeds), mixture(6).sample(world_seeds(4, 6))
    assert torch.equal(one, mixture(6).sample(seeds)) and not torch.equal(one, other)
    assert torch.equal(one[2:3], mixture(1).sample(seeds[2:3])) and len(one.unique()) == one.numel()


@pytest.mark.parametrize("cuts", [[1] * 7, [3, 4], [6, 1]])
def test_streaming_equals_parallel_for_every_chunking(cuts):
    model = network()
    latents = torch.randn(2, 7, 4, dtype=torch.float64)
    embeddings = model.embed_actions(torch.randint(0, 3, (2, 7)))
    whole, last = model(model.init_state(2), latents, embeddings)
    memory, parts = model.init_state(2), []
    for x, embedding in zip(latents.split(cuts, 1), embeddings.split(cuts, 1), strict=True):
        output, memory = model(memory, x, embedding)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(memory, last, rtol=0, atol=1e-12)


def test_predictions_depend_on_the_action_of_their_frame_and_nothing_later():
    model = network()
    latents, actions = torch.randn(1, 6, 4, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.int64)
    other = actions.clone()
    other[:, 3] = 2
    one, two = (model(model.init_state(1), latents, model.embed_actions(a))[0] for a in (actions, other))
    assert torch.equal(one[:, :3], two[:, :3]) and not torch.equal(one[:, 3], two[:, 3])


def test_rewards_are_predicted_with_a_head_and_zero_without():
    output = torch.randn(2, 16, dtype=torch.float64)
    plain, rich = network(), network(predict_reward=True)
    assert plain.predict(output).reward_logits is None and not plain.mean_reward(plain.predict(output)).any()
    predicted = rich.predict(output)
    torch.testing.assert_close(
        rich.mean_reward(predicted),
        (predicted.reward_logits.float().softmax(-1) * rich.two_hot.values).sum(-1),
        rtol=1e-3,
        atol=1.0,
    )


def test_unknown_actions_require_an_embedding():
    actions, known = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="allow_unknown_actions"):
        network().embed_actions(actions, known)
    model = network(allow_unknown_actions=True)
    torch.testing.assert_close(model.embed_actions(actions, known)[0, 1], model.no_action.detach())


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_actions": 0}, "needs actions"), ({"action_dims": 2}, "set one of num_actions=3")]
)
def test_actions_are_of_one_kind(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_rejects_a_mismatched_tokenizer():
    with pytest.raises(ValueError, match="latent_size=4 but the tokenizer gives 6 numbers per frame"):
        check_mdn_rnn_tokenizer(FrameVAE((8, 8), latent_size=6, widths=[4]), network())
    with pytest.raises(ValueError, match="single frames, and this is a CausalVAE"):
        check_mdn_rnn_tokenizer(CausalVAE((8, 8), latent_channels=4, patch_size=2, widths=[8], depths=[1]), network())
