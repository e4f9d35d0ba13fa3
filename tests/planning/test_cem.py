"""The cross-entropy method."""

import pytest
import torch
from rooms_world import ExactRooms, drive, pairs

from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance


def test_elites_have_equal_weights_and_others_none():
    planner = CEM(samples=5, elites=2, keep_elites=0)
    costs = torch.tensor([[3.0, 1, 2, 5, 4], [1, 1, 1, 1, 1]])
    assert planner.sequence_weights(costs).tolist() == [[0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0]]


def test_one_iteration_returns_the_mean_of_the_elites():
    world, state, goals = ExactRooms(), *pairs(4, "same room")
    settings = {"horizon": 4, "samples": 32, "elites": 5, "momentum": 0.0, "keep_elites": 0, "iterations": 1}
    plan = CEM(**settings, selection="mean").plan(world, state, GoalDistance(goals))
    elites = CEM(**{**settings, "keep_elites": 5}).plan(world, state, GoalDistance(goals)).elites
    assert torch.allclose(plan.actions, elites.mean(1), atol=1e-6)
    assert torch.allclose(plan.distribution.std, elites.std(1, correction=0).clamp(min=0.05), atol=1e-5)


def test_plans_with_the_settings_of_v_jepa_2_ac_move_toward_the_goal():
    world, state, goals = ExactRooms(), *pairs(4, "same room")
    planner = CEM(
        horizon=2,
        samples=400,
        elites=10,
        iterations=10,
        momentum=0.15,
        action_bound=0.05,
        noise_exponent=0,
        keep_elites=0,
        selection="mean",
    )
    plan = planner.plan(world, state, GoalDistance(goals, "l1", "end"))
    offset = goals - state.position.float()
    first = plan.actions[:, 0]
    assert first.abs().max() <= torch.tensor(0.05)
    # Under L1, each dimension moves toward its goal at the bound, unless it is already there.
    far = offset.abs() > 1
    assert (torch.sign(first) == torch.sign(offset))[far].all() and (first.abs() > 0.02)[far].all()


@pytest.mark.parametrize("rooms", ["same room", "other room"])
def test_cem_reaches_goals_in_the_true_dynamics(rooms):
    assert drive(CEM(), *pairs(40, rooms)) >= 38


def test_cem_reaches_goals_with_discrete_actions():
    state, goals = pairs(16, "other room")
    assert drive(CEM(), state, goals, "discrete") >= 14


def test_white_noise_and_a_short_horizon_fail_behind_the_wall():
    state, goals = pairs(40, "other room")
    assert drive(CEM(horizon=8, noise_exponent=0.0), state, goals, reduction="sum") <= 32
