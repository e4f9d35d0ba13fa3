"""Invariants of every sampling planner: independence of batch and chunk size, seeds, costs, and shifted plans."""

from __future__ import annotations

import pytest
import torch
from factories import diffusion_world, genie, jepa_world
from rooms_world import ExactRooms
from torch import Tensor

from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import StepOutput
from vwm.core.states import select_worlds
from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.mppi import MPPI
from vwm.planning.sampling_planner import NegativeReturnObjective, SamplingPlanner, SequenceRollout, sequence_costs

PLANNERS = {"cem": CEM, "mppi": MPPI}
SMALL = {"horizon": 8, "samples": 24, "elites": 6}


@pytest.fixture(params=list(PLANNERS))
def kind(request) -> type[SamplingPlanner]:
    return PLANNERS[request.param]


def rooms(kind: str = "continuous"):
    """Make three problems, the first through the door."""
    world = ExactRooms(kind)
    starts = torch.tensor([[15.0, 32.0], [10, 10], [45, 50]])
    goals = torch.tensor([[48.0, 32.0], [20, 20], [45, 42]])
    return world, world.at(starts, torch.full((3, 2), 32.0)), goals


class RewardedRooms(ExactRooms):
    """Rooms with a reward of x / 10 that terminate at x > 40."""

    def step(self, state, action, decode=True):
        state, output = super().step(state, action, decode)
        x = output.latent[:, 0]
        return state, output._replace(reward=x / 10, terminated=x > 40)


def test_sequence_costs_equal_single_steps_for_every_chunk_size():
    world, state, goals = rooms()
    actions = torch.rand(3, 5, 4, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    objective = GoalDistance(goals, "l2", "sum")
    costs = sequence_costs(world, state, objective, actions)
    assert costs.shape == (3, 5)
    for chunk in (1, 4, 15):
        assert torch.equal(sequence_costs(world, state, objective, actions, chunk), costs)
    for problem, sample in ((0, 0), (1, 3), (2, 4)):
        alone, expected = select_worlds(state, torch.tensor([problem])), []
        for action in actions[problem, sample]:
            alone, output = world.step(alone, action[None], decode=False)
            expected.append((output.latent[0] - goals[problem]).square().mean().sqrt())
        assert costs[problem, sample] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-6)


def test_returns_are_discounted_end_at_terminations_and_add_the_terminal_value():
    rewards = torch.tensor([[1.0, 2, 4]] * 3)
    ends = torch.tensor([[False] * 3, [False, True, False], [False, False, True]])
    rollout = SequenceRollout(-rewards, ends, torch.full((3, 1), 10.0))
    assert NegativeReturnObjective(0.5).sequence_cost(rollout).tolist() == [-3, -2, -3]  # the terminating step counts
    valued = NegativeReturnObjective(0.5, terminal_value=lambda latent: latent[:, 0])
    assert valued.sequence_cost(rollout).tolist() == [-3 - 10 / 8, -2, -3]
    world, (_, state, _) = RewardedRooms(), rooms()
    right = torch.tensor([1.0, 0.0]).expand(3, 1, 9, 2)
    costs = sequence_costs(world, state, NegativeReturnObjective(), right)[:, 0].tolist()
    assert costs[0] == pytest.approx(-sum((15 + 3 * i) / 10 for i in range(1, 10)))  # the last step passes 42
    assert costs[2] == pytest.approx(-4.8)  # terminates at the first step
    with pytest.raises(ValueError, match="discount"):
        NegativeReturnObjective(1.5)


@pytest.mark.parametrize("space", ["continuous", "discrete"])
def test_plans_do_not_depend_on_the_batch(kind, space):
    world, state, goals = rooms(space)
    planner, seeds = kind(**SMALL), world_seeds(3, 3)

    def decide_twice(problems: Tensor):
        """Return a plan, and the plan that starts from it one step later."""
        objective, own_seeds = GoalDistance(goals[problems], "l2"), seeds[problems]
        current_state = select_worlds(state, problems)
        plan = planner.plan(world, current_state, objective, own_seeds)
        current_state, _ = world.step(current_state, plan.actions[:, 0], decode=False)
        return plan, planner.plan(world, current_state, objective, fold_in(own_seeds, 1), planner.shift_plan(plan, 1))

    batched = decide_twice(torch.arange(3))
    for problem in range(3):
        for alone, all_three in zip(decide_twice(torch.tensor([problem])), batched, strict=True):
            assert torch.allclose(alone.actions[0].double(), all_three.actions[problem].double(), atol=1e-4)
            assert torch.allclose(alone.cost[0], all_three.cost[problem], atol=1e-4)


def test_plans_are_a_function_of_the_seed_and_do_not_change_the_state(kind):
    world, state, goals = rooms()
    objective, position = GoalDistance(goals, "l2"), state.position.clone()
    first, same, other = (kind(**SMALL).plan(world, state, objective, seed) for seed in (0, 0, 1))
    assert torch.equal(first.actions, same.actions) and not torch.equal(first.actions, other.actions)
    assert torch.equal(state.position, position)
    assert first.actions.shape == (3, 8, 2) and first.elites.shape == (3, 4, 8, 2)
    assert first.actions.abs().max() <= 1


def test_the_cost_of_a_plan_is_the_cost_of_its_actions(kind):
    for space in ("continuous", "discrete"):
        world, state, goals = rooms(space)
        for selection in ("best", "mean"):
            plan = kind(**SMALL, selection=selection).plan(world, state, GoalDistance(goals, "l2"))
            costs = sequence_costs(world, state, GoalDistance(goals, "l2"), plan.actions[:, None])[:, 0]
            assert torch.allclose(plan.cost, costs)
            by_elite = sequence_costs(world, state, GoalDistance(goals, "l2"), plan.elites)
            assert (by_elite.diff(dim=1) >= 0).all()  # best first
            if selection == "best":
                assert (plan.cost <= by_elite[:, 0]).all()


def test_more_samples_and_iterations_find_cheaper_plans(kind):
    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2")
    settings = {"horizon": 8, "elites": 4, "keep_elites": 4, "selection": "best"}
    small, large = (kind(samples=n, iterations=i, **settings) for n, i in ((8, 1), (64, 5)))
    costs = [torch.stack([p.plan(world, state, objective, seed).cost for seed in range(4)]) for p in (small, large)]
    assert (costs[1].mean(0) < costs[0].mean(0)).all()


def test_the_best_proposal_is_selected(kind):
    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2", "end")
    offset = goals - state.position.float()
    straight = (offset / 24)[:, None, None].expand(3, 1, 8, 2)  # at the goal after exactly eight steps
    planner = kind(horizon=8, samples=4, elites=2, keep_elites=1, iterations=1, selection="best")
    reachable = torch.tensor([1, 2])  # the first is more than eight steps away
    plan = planner.plan(world, state, objective, proposals=straight.clamp(-1, 1))
    assert torch.equal(plan.actions[reachable], straight[reachable, 0])
    assert plan.cost[reachable].max() < 1e-5
    assert torch.equal(plan.elites[reachable, 0], straight[reachable, 0])


def test_a_shifted_plan_continues_the_last_one(kind):
    world, state, goals = rooms()
    planner = kind(**SMALL, selection="best")
    plan = planner.plan(world, state, GoalDistance(goals, "l2"))
    later = planner.shift_plan(plan, 3)
    assert torch.equal(later.actions[:, :5], plan.actions[:, 3:]) and torch.equal(
        later.actions[:, 5], later.actions[:, 4]
    )
    assert torch.equal(later.elites[:, :, :5], plan.elites[:, :, 3:])
    for t in range(3):
        state, _ = world.step(state, plan.actions[:, t], decode=False)
    objective = GoalDistance(goals, "l2")
    shifted_cost = sequence_costs(world, state, objective, later.elites)[:, 0]
    new_plan = planner.plan(world, state, objective, 1, later)
    assert (new_plan.cost <= shifted_cost + 1e-6).all()  # the new plan is at least as good as the shifted one


def test_without_kept_elites_the_best_of_all_iterations_is_selected(kind):
    class CountingPlanner(kind):
        sample_counts: list[int] = []  # noqa: RUF012

        def sequence_weights(self, costs: Tensor) -> Tensor:
            self.sample_counts.append(costs.shape[1])
            return super().sequence_weights(costs)

    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2")
    planner = CountingPlanner(**SMALL, keep_elites=0, selection="best")
    plan = planner.plan(world, state, objective)
    next_plan = planner.plan(world, state, objective, 1, planner.shift_plan(plan, 1))
    assert set(planner.sample_counts) == {24} and next_plan.elites.shape == (3, 0, 8, 2)
    first = kind(**SMALL, keep_elites=0, selection="best", iterations=1).plan(world, state, objective)
    assert (plan.cost <= first.cost + 1e-6).all()  # the best of all iterations, not of the last one


def test_actions_stay_within_the_bound(kind):
    world, state, goals = rooms()
    plan = kind(**SMALL, action_bound=0.05).plan(world, state, GoalDistance(goals, "l2"))
    assert 0.04 < plan.actions.abs().max() <= 0.05  # the goals are far away
    assert plan.elites.abs().max() <= 0.05


def test_nan_costs_count_as_the_highest(kind):
    class PartlyNaN(GoalDistance):
        def sequence_cost(self, rollout: SequenceRollout) -> Tensor:
            cost = super().sequence_cost(rollout)
            return torch.where(cost > cost.median(), torch.nan, cost)

    world, state, goals = rooms()
    plan = kind(**SMALL).plan(world, state, PartlyNaN(goals, "l2"))
    assert plan.actions.isfinite().all() and plan.distribution.mean.isfinite().all()

    class AllNaN(GoalDistance):
        def step_cost(self, output: StepOutput, problem_index: Tensor) -> Tensor:
            return super().step_cost(output, problem_index) * torch.nan

    assert kind(**SMALL).plan(world, state, AllNaN(goals)).actions.isfinite().all()


def test_plans_in_learned_worlds_of_every_family(kind):
    for world, objective in (
        (diffusion_world(action_dims=3), None),
        (jepa_world(), None),
        (jepa_world(decoder=False, pooling="flatten", action_dims=3), None),
        (diffusion_world(outcomes=True), NegativeReturnObjective(0.9)),
        (genie(), NegativeReturnObjective(0.9)),
    ):
        state, _ = world.reset(world.starts, seed=0)
        objective = objective or GoalDistance(encode_goal_frames(world, world.starts[:, -1]))
        planner = kind(horizon=2, samples=3, elites=2, iterations=2, keep_elites=1, max_batch_size=4)
        plan = planner.plan(world, state, objective)
        discrete = world.spec.actions.kind == "discrete"
        assert plan.actions.shape == ((3, 2) if discrete else (3, 2, 3)) and plan.cost.isfinite().all()
        world.step(state, plan.actions[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be 1 or more, got 0"),
        ({"samples": 0, "keep_elites": 0}, "samples"),
        ({"iterations": 0}, "iterations"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"min_std": -0.1}, "min_std"),
        ({"init_std": 0.0}, "init_std"),
        ({"noise_exponent": -1.0}, "noise_exponent"),
        ({"action_bound": 1.5}, "action_bound"),
        ({"keep_elites": 100}, r"keep_elites must lie in 0\.\.64"),
        ({"elites": 65}, r"elites must lie in 1\.\.64"),
        ({"selection": "worst"}, "selection.*worst"),
    ],
)
def test_rejects_settings_out_of_range(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_rejects_proposals_of_a_wrong_shape_or_type(kind):
    world, state, goals = rooms()
    planner, objective = kind(**SMALL), GoalDistance(goals)
    for wrong in (
        torch.zeros(3, 1, 7, 2),
        torch.zeros(2, 1, 8, 2),
        torch.zeros(3, 1, 8),
        torch.zeros(3, 1, 8, 2).long(),
    ):
        with pytest.raises(ValueError, match=r"floats \[3, m, 8, 2\]"):
            planner.plan(world, state, objective, proposals=wrong)
    with pytest.raises(ValueError, match="seed"):
        planner.plan(world, state, objective, world_seeds(0, 2))
