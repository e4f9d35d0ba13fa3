"""Distributions over action sequences: draws, fits and shifts."""

import pytest
import torch

from vwm.core.seeds import world_seeds
from vwm.planning.action_sequences import CategoricalActionSequences, GaussianActionSequences, shift_sequences
from vwm.planning.colored_noise import draw_colored_noise

CPU = torch.device("cpu")


def test_gaussian_draws_follow_mean_and_standard_deviation_within_the_bound():
    start = GaussianActionSequences.initial(2, 5, 3, std=0.5, bound=0.2, device=CPU)
    noise = draw_colored_noise(world_seeds(0, 2), 4000, 5, 3, 1.0)
    drawn = start.draw(noise)
    assert drawn.abs().max() == pytest.approx(0.2) and torch.equal(drawn, (0.1 * noise).clamp(-0.2, 0.2))
    assert torch.equal(start.mode(), torch.zeros(2, 5, 3))


def test_gaussian_fit_is_the_weighted_mean_and_standard_deviation():
    start = GaussianActionSequences.initial(1, 2, 1, std=1.0, bound=1.0, device=CPU)
    actions = torch.tensor([[[0.2], [0.4]], [[0.6], [0.4]], [[-1.0], [1.0]]])[None]
    fitted = start.fit(actions, torch.tensor([[0.5, 0.5, 0.0]]), momentum=0.0, floor=0.05)
    assert torch.allclose(fitted.mean, torch.tensor([[[0.4], [0.4]]]))
    assert torch.allclose(fitted.std, torch.tensor([[[0.2], [0.05]]]))  # never below the floor
    with_momentum = start.fit(actions, torch.tensor([[0.5, 0.5, 0.0]]), momentum=0.25, floor=0.05)
    assert torch.allclose(with_momentum.mean, torch.tensor([[[0.3], [0.3]]]))
    assert torch.allclose(with_momentum.std, torch.tensor([[[0.4], [0.25]]]))


def test_categorical_draws_have_their_probabilities_for_every_noise_exponent():
    probabilities = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.5, 0.5]])[None]
    for exponent in (0.0, 2.0):
        drawn = CategoricalActionSequences(probabilities).draw(
            draw_colored_noise(world_seeds(0, 1), 40000, 3, 4, exponent)
        )
        assert drawn.dtype == torch.int64 and drawn.shape == (1, 40000, 3)
        frequencies = torch.nn.functional.one_hot(drawn, 4).double().mean(1)
        assert (frequencies - probabilities).abs().max() < 0.01
        assert (frequencies[probabilities == 0] == 0).all()


def test_colored_noise_repeats_discrete_actions():
    uniform = CategoricalActionSequences.initial(1, 12, 4, CPU)
    repeat_rates = []
    for exponent in (0.0, 1.0, 2.0):
        drawn = uniform.draw(draw_colored_noise(world_seeds(0, 1), 4000, 12, 4, exponent))
        repeat_rates.append((drawn[..., 1:] == drawn[..., :-1]).double().mean().item())
    assert repeat_rates[0] == pytest.approx(0.25, abs=0.01) and repeat_rates[0] < repeat_rates[1] < repeat_rates[2]


def test_categorical_fit_is_the_weighted_frequency():
    start = CategoricalActionSequences.initial(1, 1, 4, CPU)
    actions, weights = torch.tensor([[[0], [0], [3]]]), torch.tensor([[0.5, 0.25, 0.25]])
    exact = start.fit(actions, weights, momentum=0.0, floor=0.0)
    assert torch.allclose(exact.probabilities, torch.tensor([[[0.75, 0, 0, 0.25]]]))
    soft = start.fit(actions, weights, momentum=0.5, floor=0.1)
    assert torch.allclose(soft.probabilities, 0.9 * torch.tensor([[[0.5, 0.125, 0.125, 0.25]]]) + 0.025)
    assert soft.mode().tolist() == [[0]]


def test_shift_drops_the_first_steps_and_repeats_the_last():
    sequence = torch.arange(4).view(1, 4, 1)
    assert shift_sequences(sequence, 0, 1).flatten().tolist() == [0, 1, 2, 3]
    assert shift_sequences(sequence, 2, 1).flatten().tolist() == [2, 3, 3, 3]
    assert shift_sequences(sequence, 9, 1).flatten().tolist() == [3, 3, 3, 3]
    start = GaussianActionSequences.initial(1, 4, 1, 0.5, 1.0, CPU)
    later = GaussianActionSequences(sequence.float(), torch.full((1, 4, 1), 0.01), start.bound).shift(1, start)
    assert later.mean.flatten().tolist() == [1, 2, 3, 3] and torch.equal(later.std, start.std)
    uniform = CategoricalActionSequences.initial(1, 2, 2, CPU)
    certain = CategoricalActionSequences(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])).shift(1, uniform)
    assert torch.allclose(certain.probabilities, torch.tensor([[[0.25, 0.75], [0.25, 0.75]]]))
