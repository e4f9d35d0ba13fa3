"""Model predictive control: the world's contexts, replanning, and the end of episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rooms_world import ExactRooms

from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.goal_tasks import MountainCarGoalTask, PendulumGoalTask, TwoRoomsGoalTask
from vwm.planning.mpc_policy import MPCPolicy, random_task_policy, run_task_policy


class RecordingRooms(ExactRooms):
    """Rooms that keep the arguments of every reset."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, context_frames=3)
        self.contexts: list[tuple] = []

    def reset(self, context, seed=0, context_actions=None):
        self.contexts.append((context, seed, context_actions))
        return super().reset(context, seed, context_actions)


def test_every_decision_resets_the_world_with_the_last_frames_and_actions():
    task, world = TwoRoomsGoalTask(3, seed=4), RecordingRooms()
    policy = MPCPolicy(world, CEM(horizon=6, samples=8, elites=2, iterations=1), task.goals, replan_every=2)
    actions, observed_frames = [], []

    def record(frames, active):
        observed_frames.append(frames)
        actions.append(policy(frames, np.ones(3, bool)))
        return actions[-1]

    task.ends = False
    run_task_policy(task, record, max_steps=6)
    assert [c.shape[1] for c, _, _ in world.contexts] == [1, 3, 3]  # at steps 0, 2 and 4
    assert world.contexts[0][2] is None
    for (context, _, context_actions), t in zip(world.contexts[1:], (2, 4), strict=True):
        assert (context.numpy() == np.stack(observed_frames[t - 2 : t + 1], axis=1)).all()
        assert (context_actions.numpy() == np.stack(actions[t - 2 : t], axis=1)).all()
    assert not torch.equal(world.contexts[0][1], world.contexts[1][1])  # one seed per decision
    assert policy.num_planned == [3, 3, 3] and len(policy.seconds) == 3


@pytest.mark.parametrize(("replan_every", "starts"), [(2, [False, True, True]), (4, [False, False])])
def test_a_search_starts_from_what_is_left_of_the_last_plan(replan_every, starts, monkeypatch):
    task, given = TwoRoomsGoalTask(2, seed=4), []
    task.ends = False
    policy = MPCPolicy(ExactRooms(), CEM(horizon=4, samples=8, iterations=1), task.goals, replan_every=replan_every)
    search = CEM.plan

    def plan(planner, simulator, state, objective, seed, previous):
        given.append(previous is not None)
        return search(planner, simulator, state, objective, seed, previous)

    monkeypatch.setattr(CEM, "plan", plan)
    run_task_policy(task, policy, max_steps=6)
    assert given == starts


def test_reaches_goals_given_as_images():
    task = TwoRoomsGoalTask(24, seed=0)
    policy = MPCPolicy(ExactRooms(), CEM(), task.goals, lambda goals: GoalDistance(goals, "l2", "min"))
    result = run_task_policy(task, policy, 60)
    assert result.solved.sum() >= 23
    random = TwoRoomsGoalTask(24, seed=0)
    assert (random.states() == result.states[:, 0]).all()
    assert run_task_policy(random, random_task_policy(random, 0), 60).solved.sum() < 12


class RoomsOfTwoFrames(RecordingRooms):
    """Rooms in which a latent holds two frames, and an action is held for both."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, frames_per_step=2)

    def encode(self, frames):
        return super().encode(frames)[:, ::2]

    def step(self, state, action, decode=True):
        return super().step(super().step(state, action, decode)[0], action, decode)


def test_a_world_of_two_frames_per_step_is_planned_in_with_held_actions():
    task, world, actions = TwoRoomsGoalTask(24, seed=0), RoomsOfTwoFrames(), []
    planner = CEM(horizon=12)
    policy = MPCPolicy(world, planner, task.goals, lambda goals: GoalDistance(goals, "l2", "min"), replan_every=3)

    def record(frames, active):
        actions.append(policy(frames, active))
        return actions[-1]

    result = run_task_policy(task, record, 60)
    assert result.solved.sum() >= 22
    assert [c.shape[1] for c, _, _ in world.contexts] == [1] + [3] * (len(world.contexts) - 1)
    assert len(world.contexts) == -(-len(actions) // 6)  # a decision is three actions of two frames
    decided = actions[: len(actions) // 2 * 2]
    assert all((one == other).all() for one, other in zip(decided[::2], decided[1::2], strict=True))
    assert not (actions[0] == actions[2]).all()


def test_solved_episodes_stop_and_are_not_planned_for():
    task = TwoRoomsGoalTask(8, seed=3)
    world = RecordingRooms()
    policy = MPCPolicy(world, CEM(), task.goals, lambda goals: GoalDistance(goals, "l2", "min"), replan_every=3)
    result = run_task_policy(task, policy, 60, keep_frames=2)
    assert result.frames.shape[1:] == (2, 64, 64, 3) and len(result.frames) == result.distances.shape[1]
    assert policy.num_planned == sorted(policy.num_planned, reverse=True) and policy.num_planned[-1] < 8
    assert policy.num_planned[0] == 8
    for episode in range(8):
        after = result.distances[episode, result.steps[episode] :]
        assert (after == after[0]).all() and (after[0] <= 4) == result.solved[episode]
        assert (result.distances[episode, : result.steps[episode]] > 4).all()


def test_an_episode_does_not_depend_on_the_end_of_others():
    def run_episodes(episodes: int):
        task = TwoRoomsGoalTask(episodes, seed=3)
        policy = MPCPolicy(
            ExactRooms(), CEM(samples=16, elites=4), task.goals, lambda g: GoalDistance(g, "l2", "min"), 2
        )
        return run_task_policy(task, policy, 20)

    few, many = run_episodes(2), run_episodes(6)
    length = min(few.states.shape[1], many.states.shape[1])
    assert np.allclose(few.states[:2, :length], many.states[:2, :length], atol=1e-3)


def test_hold_tasks_run_to_the_last_step():
    for kind, length in ((PendulumGoalTask, 12), (MountainCarGoalTask, 12)):
        task = kind(1, size=16)
        if kind is PendulumGoalTask:
            task.envs[0].state = np.zeros(2)  # upright, in equilibrium
        result = run_task_policy(task, lambda frames, active: np.zeros((1, 1), np.float32), length)
        assert result.distances.shape == (1, length + 1) and result.steps.tolist() == [length]
        assert result.solved.tolist() == [kind is PendulumGoalTask]
        task.close()


def test_rejects_replanning_less_often_than_the_horizon():
    with pytest.raises(ValueError, match=r"replan_every must lie in 1\.\.4"):
        MPCPolicy(ExactRooms(), CEM(horizon=4), TwoRoomsGoalTask(1).goals, replan_every=5)
