"""Playing a task by planning: look, plan, do the first steps, look again (receding horizon).

Legend: n episodes, t time, h w pixels, a dimensions of an action, s numbers of the true state.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator
from vwm.core.states import select_worlds
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.goal_tasks import ActionArray, Floats, Frames, GoalTask
from vwm.planning.sampling_planner import ActionPlan, SamplingPlanner

TaskPolicy = Callable[[Frames, NDArray[np.bool_]], ActionArray]
"""Frames uint8 [n, h, w, 3], and which episodes are still playing, bool [n] -> what all do, [n, a]."""


class TaskRollout(NamedTuple):
    """What came of playing a task.

    Attributes:
        distances: float64 [n, t + 1] to the goal, before the first step and after each.
        states: float64 [n, t + 1, s].
        solved: bool [n].
        steps: int64 [n], steps until the episode was over.
        frames: uint8 [t + 1, m, h, w, 3], of the first m episodes.
    """

    distances: Floats
    states: Floats
    solved: NDArray[np.bool_]
    steps: NDArray[np.int64]
    frames: Frames


class MPCPolicy:
    """Plans every ``replan`` steps from what was seen last, for all episodes that are still playing at once.

    A world is begun anew at every decision, from the last frames and the actions between them, so that its own errors
    do not pile up; the plan goes on from the one before.

    Args:
        simulator: the world to plan in.
        planner: how to search.
        goals: uint8 [n, h, w, 3], the picture of each episode's goal.
        objective: from the encoded goals [b, ...] to what planning minimises.
        replan: steps from one decision to the next.
        seed: of all decisions.

    Attributes:
        seconds: of each decision, for all episodes that were playing.
        decided: how many those were.

    Raises:
        ValueError: ``replan`` is longer than the planner looks ahead.
    """

    def __init__(
        self,
        simulator: Simulator,
        planner: SamplingPlanner,
        goals: Frames,
        objective: Callable[[Tensor], GoalDistance] = GoalDistance,
        replan: int = 2,
        seed: int = 0,
    ) -> None:
        if not 1 <= replan <= planner.horizon:
            raise ValueError(f"replan must lie in 1..{planner.horizon} (the planner's horizon), got {replan}")
        self.simulator, self.planner, self.objective, self.replan = simulator, planner, objective, replan
        self.goals = encode_goal_frames(simulator, torch.from_numpy(goals))
        self.seeds = world_seeds(seed, len(goals))
        self.frames: deque[Tensor] = deque(maxlen=simulator.spec.context_frames)
        self.actions: deque[Tensor] = deque(maxlen=max(simulator.spec.context_frames - 1, 1))
        self.step = 0
        self.plan: ActionPlan | None = None
        self.seconds: list[float] = []
        self.decided: list[int] = []

    def __call__(self, frames: Frames, playing: NDArray[np.bool_]) -> ActionArray:
        """See ``TaskPolicy``; call it once a step."""
        self.frames.append(torch.from_numpy(frames))
        if self.step % self.replan == 0:
            self._decide(torch.from_numpy(playing))
        assert self.plan is not None
        actions = torch.zeros(len(frames), self.simulator.spec.actions.size)
        actions[self.planned] = self.plan.actions[:, self.step % self.replan].cpu().float()
        self.actions.append(actions)
        self.step += 1
        return actions.numpy()

    def _decide(self, playing: Tensor) -> None:
        began = time.perf_counter()
        episodes = playing.nonzero()[:, 0]
        context = torch.stack(list(self.frames), dim=1)[episodes]
        between = list(self.actions)[len(self.actions) - context.shape[1] + 1 :]
        told = torch.stack(between, dim=1)[episodes] if between else None
        seeds = fold_in(self.seeds[episodes], self.step)
        state, _ = self.simulator.reset(context, seeds, told)
        objective = self.objective(self.goals[episodes.to(self.goals.device)])
        self.plan = self.planner.plan(self.simulator, state, objective, seeds, self._previous(episodes))
        self.planned = episodes
        self.seconds.append(time.perf_counter() - began)
        self.decided.append(len(episodes))

    def _previous(self, episodes: Tensor) -> ActionPlan | None:
        """The last plan as it stands now, of these episodes; they are among those that it was made for."""
        if self.plan is None:
            return None
        places = torch.searchsorted(self.planned, episodes).to(self.plan.cost.device)
        return self.planner.later(select_worlds(self.plan, places), self.replan)


def run_task_policy(task: GoalTask, policy: TaskPolicy, budget: int, shown: int = 8) -> TaskRollout:
    """Play all episodes of a task.

    Args:
        task: at its start.
        policy: asked at every step.
        budget: steps at most.
        shown: episodes of which the frames are kept.
    """
    seen = task.frames()
    distances, states, frames = [task.distances()], [task.states()], [seen[:shown]]
    over, steps = np.zeros(len(seen), bool), np.zeros(len(seen), np.int64)
    for _ in range(budget):
        if task.ends:
            over = task.solved(np.stack(distances, axis=1))
        if over.all():
            break
        steps += ~over
        task.act(policy(seen, ~over), ~over)
        seen = task.frames()
        distances.append(task.distances())
        states.append(task.states())
        frames.append(seen[:shown])
    measured = np.stack(distances, axis=1)
    return TaskRollout(measured, np.stack(states, axis=1), task.solved(measured), steps, np.stack(frames))


def random_task_policy(task: GoalTask, seed: int) -> TaskPolicy:
    """Draws every action anew, uniformly."""
    generator = np.random.default_rng([seed, 1])
    shape = (len(task.games), task.action_size)
    return lambda frames, playing: generator.uniform(-1, 1, shape).astype(np.float32)
