"""The cross-entropy method."""

import pytest
import torch
from rooms_world import ExactRooms, drive, pairs

from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance


def test_only_the_elites_count_and_all_alike():
    planner = CEM(samples=5, elites=2, keep=0)
    costs = torch.tensor([[3.0, 1, 2, 5, 4], [1, 1, 1, 1, 1]])
    assert planner.weights(costs).tolist() == [[0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0]]


def test_one_iteration_is_the_mean_of_the_best():
    world, state, goals = ExactRooms(), *pairs(4, "same room")
    settings = {"horizon": 4, "samples": 32, "elites": 5, "momentum": 0.0, "keep": 0, "iterations": 1}
    plan = CEM(**settings, pick="mean").plan(world, state, GoalDistance(goals))
    elites = CEM(**{**settings, "keep": 5}).plan(world, state, GoalDistance(goals)).elites
    assert torch.allclose(plan.actions, elites.mean(1), atol=1e-6)
    assert torch.allclose(plan.distribution.std, elites.std(1, correction=0).clamp(min=0.05), atol=1e-5)


def test_the_settings_of_v_jepa_2_ac_move_towards_the_goal():
    world, state, goals = ExactRooms(), *pairs(4, "same room")
    planner = CEM(
        horizon=2, samples=400, elites=10, iterations=10, momentum=0.15, max_norm=0.05, colour=0, keep=0, pick="mean"
    )
    plan = planner.plan(world, state, GoalDistance(goals, "l1", "end"))
    way = goals - state.position.float()
    first = plan.actions[:, 0]
    assert first.abs().max() <= torch.tensor(0.05)
    # Under L1, each dimension goes to its goal as fast as it may, unless it is there.
    far = way.abs() > 1
    assert (torch.sign(first) == torch.sign(way))[far].all() and (first.abs() > 0.02)[far].all()


@pytest.mark.parametrize("rooms", ["same room", "other room"])
def test_cem_reaches_goals_in_the_true_world_through_the_door_too(rooms):
    assert drive(CEM(), *pairs(40, rooms)) >= 38


def test_discrete_actions_reach_goals_too():
    state, goals = pairs(16, "other room")
    assert drive(CEM(), state, goals, "discrete") >= 14


def test_white_noise_and_short_sight_stay_behind_the_wall():
    state, goals = pairs(40, "other room")
    assert drive(CEM(horizon=8, colour=0.0), state, goals, over="sum") <= 32
