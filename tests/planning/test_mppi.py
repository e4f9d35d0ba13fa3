"""Model predictive path integral control."""

import pytest
import torch
from rooms_world import drive, pairs

from vwm.planning.mppi import MPPI

COSTS = torch.tensor([[3.0, 1, 2, 5], [0.5, 0.25, 0.125, 1]], dtype=torch.float64)


def test_weights_are_the_softmax_of_what_it_costs():
    expected = (-COSTS / 0.5).softmax(dim=1)
    assert torch.allclose(MPPI(temperature=0.5, relative=False).weights(COSTS), expected, rtol=0, atol=1e-12)
    best = MPPI(temperature=0.5, relative=False, elites=2).weights(COSTS)
    kept = torch.tensor([[False, True, True, False], [False, True, True, False]])
    assert torch.allclose(best, torch.where(kept, expected, 0) / expected[kept].view(2, 2).sum(1, keepdim=True))


def test_a_relative_temperature_does_not_see_the_scale_of_costs():
    planner = MPPI(temperature=0.3)
    weights = planner.weights(COSTS)
    assert torch.allclose(planner.weights(1e4 * COSTS + 7), weights) and torch.allclose(
        weights.sum(1), torch.ones(2).double()
    )
    excess = COSTS - COSTS.amin(1, keepdim=True)
    assert torch.allclose(weights, (-excess / (0.3 * excess.square().mean(1, keepdim=True).sqrt())).softmax(1))


def test_a_cold_planner_follows_the_best_and_a_hot_one_the_mean():
    assert torch.allclose(MPPI(temperature=1e-4).weights(COSTS), torch.tensor([[0, 1.0, 0, 0], [0, 0, 1, 0]]).double())
    assert torch.allclose(MPPI(temperature=1e6).weights(COSTS), torch.full((2, 4), 0.25).double(), atol=1e-5)
    equal = torch.ones(1, 4)
    assert torch.allclose(MPPI().weights(equal), torch.full((1, 4), 0.25))


def test_temperature_must_be_above_zero():
    with pytest.raises(ValueError, match="temperature"):
        MPPI(temperature=0)


@pytest.mark.parametrize("rooms", ["same room", "other room"])
def test_mppi_reaches_goals_in_the_true_world_through_the_door_too(rooms):
    assert drive(MPPI(), *pairs(40, rooms)) >= 38


def test_a_single_iteration_of_many_samples_does_as_well():
    assert drive(MPPI(samples=192, iterations=1), *pairs(40, "other room")) >= 38
