"""Model predictive path integral control."""

import pytest
import torch
from rooms_world import drive, pairs

from vwm.planning.mppi import MPPI

COSTS = torch.tensor([[3.0, 1, 2, 5], [0.5, 0.25, 0.125, 1]], dtype=torch.float64)


def test_weights_are_the_softmax_of_negative_costs():
    expected = (-COSTS / 0.5).softmax(dim=1)
    assert torch.allclose(
        MPPI(temperature=0.5, relative_temperature=False).sequence_weights(COSTS), expected, rtol=0, atol=1e-12
    )
    best = MPPI(temperature=0.5, relative_temperature=False, elites=2).sequence_weights(COSTS)
    is_elite = torch.tensor([[False, True, True, False], [False, True, True, False]])
    assert torch.allclose(best, torch.where(is_elite, expected, 0) / expected[is_elite].view(2, 2).sum(1, keepdim=True))


def test_a_relative_temperature_is_invariant_to_the_scale_of_costs():
    planner = MPPI(temperature=0.3)
    weights = planner.sequence_weights(COSTS)
    assert torch.allclose(planner.sequence_weights(1e4 * COSTS + 7), weights) and torch.allclose(
        weights.sum(1), torch.ones(2).double()
    )
    excess = COSTS - COSTS.amin(1, keepdim=True)
    assert torch.allclose(weights, (-excess / (0.3 * excess.square().mean(1, keepdim=True).sqrt())).softmax(1))


def test_low_temperatures_weight_the_best_only_and_high_ones_all():
    assert torch.allclose(
        MPPI(temperature=1e-4).sequence_weights(COSTS), torch.tensor([[0, 1.0, 0, 0], [0, 0, 1, 0]]).double()
    )
    assert torch.allclose(MPPI(temperature=1e6).sequence_weights(COSTS), torch.full((2, 4), 0.25).double(), atol=1e-5)
    equal = torch.ones(1, 4)
    assert torch.allclose(MPPI().sequence_weights(equal), torch.full((1, 4), 0.25))


def test_rejects_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature"):
        MPPI(temperature=0)


@pytest.mark.parametrize("rooms", ["same room", "other room"])
def test_mppi_reaches_goals_in_the_true_dynamics(rooms):
    assert drive(MPPI(), *pairs(40, rooms)) >= 38


def test_mppi_reaches_goals_with_one_iteration_of_many_samples():
    assert drive(MPPI(samples=192, iterations=1), *pairs(40, "other room")) >= 38
