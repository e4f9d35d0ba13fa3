"""What holds for every planner: problems do not see each other, nor the chunks, and plans go on from plans."""

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
    """Three problems in one room and through the door."""
    world = ExactRooms(kind)
    starts = torch.tensor([[15.0, 32.0], [10, 10], [45, 50]])
    goals = torch.tensor([[48.0, 32.0], [20, 20], [45, 42]])
    return world, world.at(starts, torch.full((3, 2), 32.0)), goals


class RewardedRooms(ExactRooms):
    """Rooms that pay x / 10 and end at x > 40."""

    def step(self, state, action, decode=True):
        state, output = super().step(state, action, decode)
        x = output.latent[:, 0]
        return state, output._replace(reward=x / 10, terminated=x > 40)


def test_costs_are_those_of_stepping_by_hand_in_chunks_of_any_size():
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


def test_returns_are_discounted_stop_at_an_end_and_count_the_value_of_the_rest():
    rewards = torch.tensor([[1.0, 2, 4]] * 3)
    ends = torch.tensor([[False] * 3, [False, True, False], [False, False, True]])
    rollout = SequenceRollout(-rewards, ends, torch.full((3, 1), 10.0))
    assert NegativeReturnObjective(0.5).total(rollout).tolist() == [
        -3,
        -2,
        -3,
    ]  # the reward of the step that ends it counts
    valued = NegativeReturnObjective(0.5, value=lambda latent: latent[:, 0])
    assert valued.total(rollout).tolist() == [-3 - 10 / 8, -2, -3]
    world, (_, state, _) = RewardedRooms(), rooms()
    right = torch.tensor([1.0, 0.0]).expand(3, 1, 9, 2)
    costs = sequence_costs(world, state, NegativeReturnObjective(), right)[:, 0].tolist()
    assert costs[0] == pytest.approx(-sum((15 + 3 * i) / 10 for i in range(1, 10)))  # 42 is passed at the last step
    assert costs[2] == pytest.approx(-4.8)  # ends at once
    with pytest.raises(ValueError, match="discount"):
        NegativeReturnObjective(1.5)


@pytest.mark.parametrize("space", ["continuous", "discrete"])
def test_a_problem_is_planned_as_it_would_be_alone(kind, space):
    world, state, goals = rooms(space)
    planner, seeds = kind(**SMALL), world_seeds(3, 3)

    def decide_twice(problems: Tensor):
        """The plan, and the plan that goes on from it one step later."""
        own, lucky = GoalDistance(goals[problems], "l2"), seeds[problems]
        now = select_worlds(state, problems)
        plan = planner.plan(world, now, own, lucky)
        now, _ = world.step(now, plan.actions[:, 0], decode=False)
        return plan, planner.plan(world, now, own, fold_in(lucky, 1), planner.later(plan, 1))

    together = decide_twice(torch.arange(3))
    for problem in range(3):
        for alone, all_three in zip(decide_twice(torch.tensor([problem])), together, strict=True):
            assert torch.allclose(alone.actions[0].double(), all_three.actions[problem].double(), atol=1e-4)
            assert torch.allclose(alone.cost[0], all_three.cost[problem], atol=1e-4)


def test_plans_are_a_function_of_the_seed_and_leave_the_state(kind):
    world, state, goals = rooms()
    objective, kept = GoalDistance(goals, "l2"), state.position.clone()
    first, same, other = (kind(**SMALL).plan(world, state, objective, seed) for seed in (0, 0, 1))
    assert torch.equal(first.actions, same.actions) and not torch.equal(first.actions, other.actions)
    assert torch.equal(state.position, kept)
    assert first.actions.shape == (3, 8, 2) and first.elites.shape == (3, 4, 8, 2)
    assert first.actions.abs().max() <= 1


def test_the_cost_of_a_plan_is_what_its_actions_cost(kind):
    for space in ("continuous", "discrete"):
        world, state, goals = rooms(space)
        for pick in ("best", "mean"):
            plan = kind(**SMALL, pick=pick).plan(world, state, GoalDistance(goals, "l2"))
            costs = sequence_costs(world, state, GoalDistance(goals, "l2"), plan.actions[:, None])[:, 0]
            assert torch.allclose(plan.cost, costs)
            by_elite = sequence_costs(world, state, GoalDistance(goals, "l2"), plan.elites)
            assert (by_elite.diff(dim=1) >= 0).all()  # the best first
            if pick == "best":
                assert (plan.cost <= by_elite[:, 0]).all()


def test_more_search_finds_cheaper_plans(kind):
    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2")
    settings = {"horizon": 8, "elites": 4, "keep": 4, "pick": "best"}
    little, much = (kind(samples=n, iterations=i, **settings) for n, i in ((8, 1), (64, 5)))
    costs = [torch.stack([p.plan(world, state, objective, seed).cost for seed in range(4)]) for p in (little, much)]
    assert (costs[1].mean(0) < costs[0].mean(0)).all()


def test_a_proposal_that_is_best_is_followed(kind):
    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2", "end")
    way = goals - state.position.float()
    straight = (way / 24)[:, None, None].expand(3, 1, 8, 2)  # exactly there after eight steps
    planner = kind(horizon=8, samples=4, elites=2, keep=1, iterations=1, pick="best")
    reachable = torch.tensor([1, 2])  # the first is more than eight steps away
    plan = planner.plan(world, state, objective, proposals=straight.clamp(-1, 1))
    assert torch.equal(plan.actions[reachable], straight[reachable, 0])
    assert plan.cost[reachable].max() < 1e-5
    assert torch.equal(plan.elites[reachable, 0], straight[reachable, 0])


def test_a_plan_goes_on_where_the_last_one_stood(kind):
    world, state, goals = rooms()
    planner = kind(**SMALL, pick="best")
    plan = planner.plan(world, state, GoalDistance(goals, "l2"))
    later = planner.later(plan, 3)
    assert torch.equal(later.actions[:, :5], plan.actions[:, 3:]) and torch.equal(
        later.actions[:, 5], later.actions[:, 4]
    )
    assert torch.equal(later.elites[:, :, :5], plan.elites[:, :, 3:])
    for t in range(3):
        state, _ = world.step(state, plan.actions[:, t], decode=False)
    objective = GoalDistance(goals, "l2")
    carried = sequence_costs(world, state, objective, later.elites)[:, 0]
    found = planner.plan(world, state, objective, 1, later)
    assert (found.cost <= carried + 1e-6).all()  # what was found is not lost


def test_without_keeping_every_iteration_stands_for_itself_and_the_best_is_still_followed(kind):
    class Counted(kind):
        seen: list[int] = []  # noqa: RUF012

        def weights(self, costs: Tensor) -> Tensor:
            self.seen.append(costs.shape[1])
            return super().weights(costs)

    world, state, goals = rooms()
    objective = GoalDistance(goals, "l2")
    planner = Counted(**SMALL, keep=0, pick="best")
    plan = planner.plan(world, state, objective)
    then = planner.plan(world, state, objective, 1, planner.later(plan, 1))
    assert set(planner.seen) == {24} and then.elites.shape == (3, 0, 8, 2)
    first = kind(**SMALL, keep=0, pick="best", iterations=1).plan(world, state, objective)
    assert (plan.cost <= first.cost + 1e-6).all()  # the best of all iterations, not of the last one


def test_limits_of_actions_hold(kind):
    world, state, goals = rooms()
    plan = kind(**SMALL, max_norm=0.05).plan(world, state, GoalDistance(goals, "l2"))
    assert 0.04 < plan.actions.abs().max() <= 0.05  # the goals are far
    assert plan.elites.abs().max() <= 0.05


def test_numbers_that_are_none_cost_most(kind):
    class Broken(GoalDistance):
        def total(self, rollout: SequenceRollout) -> Tensor:
            cost = super().total(rollout)
            return torch.where(cost > cost.median(), torch.nan, cost)

    world, state, goals = rooms()
    plan = kind(**SMALL).plan(world, state, Broken(goals, "l2"))
    assert plan.actions.isfinite().all() and plan.distribution.mean.isfinite().all()

    class Hopeless(GoalDistance):
        def step(self, output: StepOutput, problem: Tensor) -> Tensor:
            return super().step(output, problem) * torch.nan

    assert kind(**SMALL).plan(world, state, Hopeless(goals)).actions.isfinite().all()


def test_learned_worlds_of_every_kind_can_be_planned_in(kind):
    for world, objective in (
        (diffusion_world(action_dims=3), None),
        (jepa_world(), None),
        (jepa_world(decoder=False, pooling="flatten", action_dims=3), None),
        (diffusion_world(outcomes=True), NegativeReturnObjective(0.9)),
        (genie(), NegativeReturnObjective(0.9)),
    ):
        state, _ = world.reset(world.starts, seed=0)
        objective = objective or GoalDistance(encode_goal_frames(world, world.starts[:, -1]))
        planner = kind(horizon=2, samples=3, elites=2, iterations=2, keep=1, chunk=4)
        plan = planner.plan(world, state, objective)
        discrete = world.spec.actions.kind == "discrete"
        assert plan.actions.shape == ((3, 2) if discrete else (3, 2, 3)) and plan.cost.isfinite().all()
        world.step(state, plan.actions[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon must be 1 or more, got 0"),
        ({"samples": 0, "keep": 0}, "samples"),
        ({"iterations": 0}, "iterations"),
        ({"chunk": 0}, "chunk"),
        ({"momentum": 1.0}, "momentum.*1.0"),
        ({"min_std": -0.1}, "min_std"),
        ({"std": 0.0}, "std"),
        ({"colour": -1.0}, "colour"),
        ({"max_norm": 1.5}, "max_norm"),
        ({"keep": 100}, r"keep must lie in 0\.\.64"),
        ({"elites": 65}, r"elites must lie in 1\.\.64"),
        ({"pick": "worst"}, "pick.*worst"),
    ],
)
def test_settings_without_sense_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_sequences_that_do_not_fit_are_refused(kind):
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
