"""Random shooting: uniform sequences, of which the best is taken."""

from __future__ import annotations

import pytest
import torch
from pets_worlds import pets_world

from vwm.core.seeds import fold_in, world_seeds
from vwm.planning import NegativeReturnObjective, RandomShooting
from vwm.planning.colored_noise import draw_colored_noise
from vwm.planning.sampling_planner import sequence_costs


@pytest.mark.parametrize("action_dims", [0, 3])
def test_the_plan_is_the_best_of_the_sequences_drawn(action_dims: int) -> None:
    world, planner = pets_world(action_dims), RandomShooting(horizon=3, samples=50, action_bound=0.5)
    state, _ = world.reset(world.starts[:, :1])
    plan = planner.plan(world, state, NegativeReturnObjective(), seed=5)
    start = planner._initial_distribution(world.spec.actions, 3, torch.device("cpu"))
    size = world.spec.actions.size
    drawn = start.draw(draw_colored_noise(fold_in(world_seeds(5, 3), 0), 50, 3, size, 0.0))
    costs = sequence_costs(world, state, NegativeReturnObjective(), drawn)
    best = costs.argmin(1)
    assert torch.equal(plan.actions, drawn[torch.arange(3), best])
    torch.testing.assert_close(plan.cost, costs[torch.arange(3), best])
    later = planner.shift_plan(plan, 1)
    again = planner.plan(world, state, NegativeReturnObjective(), seed=5, previous=later)
    assert torch.equal(again.actions, plan.actions)  # nothing of an earlier plan is kept


def test_continuous_actions_are_uniform_within_the_bound() -> None:
    world, planner = pets_world(1), RandomShooting(horizon=100, samples=100, action_bound=0.5)
    noise = torch.randn(1, 100, 100, 1, generator=torch.Generator().manual_seed(0))
    drawn = planner._initial_distribution(world.spec.actions, 1, torch.device("cpu")).draw(noise)
    counts = torch.histc(drawn, 10, -0.5, 0.5)
    assert counts.sum() == 10_000 and counts.min() > 850 and counts.max() < 1150


def test_settings_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="random shooting has iterations=1"):
        RandomShooting(iterations=3)
