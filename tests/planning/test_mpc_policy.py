"""Receding horizon: what a pilot shows its world, when it decides, and that over means over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rooms_world import ExactRooms

from vwm.planning.cem import CEM
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.goal_tasks import MountainCarGoalTask, PendulumGoalTask, TwoRoomsGoalTask
from vwm.planning.mpc_policy import MPCPolicy, random_task_policy, run_task_policy


class Watched(ExactRooms):
    """Rooms that keep what they were reset with."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, context_frames=3)
        self.contexts: list[tuple] = []

    def reset(self, context, seed=0, context_actions=None):
        self.contexts.append((context, seed, context_actions))
        return super().reset(context, seed, context_actions)


def test_a_world_is_begun_anew_from_the_last_frames_and_the_actions_between_them():
    task, world = TwoRoomsGoalTask(3, seed=4), Watched()
    pilot = MPCPolicy(world, CEM(horizon=6, samples=8, elites=2, iterations=1), task.goals, replan=2)
    done, seen = [], []

    def policy(frames, playing):
        seen.append(frames)
        done.append(pilot(frames, np.ones(3, bool)))
        return done[-1]

    task.ends = False
    run_task_policy(task, policy, budget=6)
    assert [c.shape[1] for c, _, _ in world.contexts] == [1, 3, 3]  # at steps 0, 2 and 4
    assert world.contexts[0][2] is None
    for (context, _, told), now in zip(world.contexts[1:], (2, 4), strict=True):
        assert (context.numpy() == np.stack(seen[now - 2 : now + 1], axis=1)).all()
        assert (told.numpy() == np.stack(done[now - 2 : now], axis=1)).all()
    assert not torch.equal(world.contexts[0][1], world.contexts[1][1])  # a seed a decision
    assert pilot.decided == [3, 3, 3] and len(pilot.seconds) == 3


def test_a_pilot_reaches_goals_that_it_only_sees():
    task = TwoRoomsGoalTask(24, seed=0)
    pilot = MPCPolicy(ExactRooms(), CEM(), task.goals, lambda goals: GoalDistance(goals, "l2", "min"))
    played = run_task_policy(task, pilot, 60)
    assert played.solved.sum() >= 23
    blind = TwoRoomsGoalTask(24, seed=0)
    assert (blind.states() == played.states[:, 0]).all()
    assert run_task_policy(blind, random_task_policy(blind, 0), 60).solved.sum() < 12


def test_episodes_that_are_over_stand_still_and_are_planned_no_more():
    task = TwoRoomsGoalTask(8, seed=3)
    world = Watched()
    pilot = MPCPolicy(world, CEM(), task.goals, lambda goals: GoalDistance(goals, "l2", "min"), replan=3)
    played = run_task_policy(task, pilot, 60, shown=2)
    assert played.frames.shape[1:] == (2, 64, 64, 3) and len(played.frames) == played.distances.shape[1]
    assert pilot.decided == sorted(pilot.decided, reverse=True) and pilot.decided[-1] < 8
    assert pilot.decided[0] == 8
    for episode in range(8):
        after = played.distances[episode, played.steps[episode] :]
        assert (after == after[0]).all() and (after[0] <= 4) == played.solved[episode]
        assert (played.distances[episode, : played.steps[episode]] > 4).all()


def test_others_ending_changes_nothing_for_those_that_play_on():
    def path(episodes: int):
        task = TwoRoomsGoalTask(episodes, seed=3)
        pilot = MPCPolicy(
            ExactRooms(), CEM(samples=16, elites=4), task.goals, lambda g: GoalDistance(g, "l2", "min"), 2
        )
        return run_task_policy(task, pilot, 20)

    few, many = path(2), path(6)
    length = min(few.states.shape[1], many.states.shape[1])
    assert np.allclose(few.states[:2, :length], many.states[:2, :length], atol=1e-3)


def test_a_task_that_must_be_held_is_played_to_the_end():
    for kind, length in ((PendulumGoalTask, 12), (MountainCarGoalTask, 12)):
        task = kind(1, size=16)
        if kind is PendulumGoalTask:
            task.games[0].state = np.zeros(2)  # upright, and it stays
        played = run_task_policy(task, lambda frames, playing: np.zeros((1, 1), np.float32), length)
        assert played.distances.shape == (1, length + 1) and played.steps.tolist() == [length]
        assert played.solved.tolist() == [kind is PendulumGoalTask]
        task.close()


def test_replanning_later_than_the_plan_is_long_is_refused():
    with pytest.raises(ValueError, match=r"replan must lie in 1\.\.4"):
        MPCPolicy(ExactRooms(), CEM(horizon=4), TwoRoomsGoalTask(1).goals, replan=5)
