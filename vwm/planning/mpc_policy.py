"""Model predictive control of a goal task: observe, plan, take the first steps of the plan, observe again.

Legend: n episodes, t time, h w pixels, a dimensions of an action, s numbers of the true state.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.command_output import progress_bar
from vwm.core.seeds import fold_in, world_seeds
from vwm.core.simulator import Simulator, State
from vwm.core.states import select_worlds
from vwm.planning.goal_distance import GoalDistance, encode_goal_frames
from vwm.planning.goal_task import ActionArray, Floats, Frames, GoalTask
from vwm.planning.sampling_planner import ActionPlan, PlanningObjective, SamplingPlanner

TaskPolicy = Callable[[Frames, NDArray[np.bool_]], ActionArray]
"""From frames uint8 [n, h, w, 3] and which episodes are active, bool [n], to the actions of all, [n, a]."""


class TaskRollout(NamedTuple):
    """The episodes of a goal task that a policy played.

    Attributes:
        distances: float64 [n, t + 1] to the goal, before the first step and after each.
        states: float64 [n, t + 1, s].
        solved: bool [n].
        steps: int64 [n], steps until the episode was over.
        frames: uint8 [t + 1, m, h, w, 3] of the first m episodes.
    """

    distances: Floats
    states: Floats
    solved: NDArray[np.bool_]
    steps: NDArray[np.int64]
    frames: Frames


class ReplanningPolicy(ABC):
    """Plan every ``replan_every`` steps of a world, for all active episodes in one batch.

    Where a step of the world shows k frames, each action of a plan is held for k steps of the task. A search starts
    from what is left of the previous plan; a plan that is taken whole leaves nothing.

    Args:
        simulator: the world to plan in.
        planner: the search.
        episodes: their number, n.
        replan_every: steps of the world from one decision to the next.
        seed: of all decisions; or int64 [n], one for each episode.

    Attributes:
        seconds: duration of each decision, for all active episodes together.
        num_planned: number of episodes in each decision.

    Raises:
        ValueError: ``replan_every`` exceeds the planner's horizon.
    """

    def __init__(
        self,
        simulator: Simulator,
        planner: SamplingPlanner,
        episodes: int,
        replan_every: int,
        seed: int | Tensor,
    ) -> None:
        if not 1 <= replan_every <= planner.horizon:
            raise ValueError(
                f"replan_every must lie in 1..{planner.horizon} (the planner's horizon), got {replan_every}"
            )
        self.simulator = simulator
        self.planner = planner
        self.replan_every = replan_every
        self.held = simulator.spec.frames_per_step
        self.seeds = world_seeds(seed, episodes)
        self.step = 0
        self.plan: ActionPlan | None = None
        self.planned_episodes = torch.arange(0)
        self.seconds: list[float] = []
        self.num_planned: list[int] = []

    @abstractmethod
    def find_problems(self, episodes: Tensor, seeds: Tensor) -> tuple[State, PlanningObjective]:
        """Return the world's current state for these episodes, int64 [b], and what planning minimizes.

        Args:
            episodes: int64 [b].
            seeds: int64 [b], of the world.
        """

    def __call__(self, frames: Frames, active: NDArray[np.bool_]) -> ActionArray:
        """Return the actions of one time step; see ``TaskPolicy``."""
        since_plan = self.step % (self.replan_every * self.held)
        if since_plan == 0:
            self._replan(torch.from_numpy(active))
        assert self.plan is not None
        actions = torch.zeros(len(frames), self.simulator.spec.actions.size)
        actions[self.planned_episodes] = self.plan.actions[:, since_plan // self.held].cpu().float()
        self.step += 1
        return actions.numpy()

    def _replan(self, active: Tensor) -> None:
        began = time.perf_counter()
        episodes = active.nonzero()[:, 0]
        seeds = fold_in(self.seeds[episodes], self.step)
        state, objective = self.find_problems(episodes, seeds)
        self.plan = self.planner.plan(self.simulator, state, objective, seeds, self._shifted_plan(episodes))
        self.planned_episodes = episodes
        self.seconds.append(time.perf_counter() - began)
        self.num_planned.append(len(episodes))

    def _shifted_plan(self, episodes: Tensor) -> ActionPlan | None:
        """Return the last plan, shifted to now, of these episodes, which are among the ones it was made for."""
        if self.plan is None or self.replan_every == self.planner.horizon:
            return None
        indices = torch.searchsorted(self.planned_episodes, episodes).to(self.plan.cost.device)
        return self.planner.shift_plan(select_worlds(self.plan, indices), self.replan_every)


class MPCPolicy(ReplanningPolicy):
    """Plan in a world from the latest frames, toward goal images; see ``ReplanningPolicy``.

    The world's state is computed from the latest frames and actions at every decision, so that prediction errors do not
    accumulate.

    Args:
        simulator: the world to plan in.
        planner: the search.
        goals: uint8 [n, h, w, 3], the goal image of each episode.
        objective: maps the encoded goals [b, ...] to what planning minimizes.
        replan_every: steps of the world from one decision to the next.
        seed: of all decisions; or int64 [n], one for each episode.

    Raises:
        ValueError: ``replan_every`` exceeds the planner's horizon, or the goals do not fit the world.
    """

    def __init__(
        self,
        simulator: Simulator,
        planner: SamplingPlanner,
        goals: Frames,
        objective: Callable[[Tensor], GoalDistance] = GoalDistance,
        replan_every: int = 2,
        seed: int | Tensor = 0,
    ) -> None:
        super().__init__(simulator, planner, len(goals), replan_every, seed)
        self.objective = objective
        self.goals = encode_goal_frames(simulator, torch.from_numpy(goals))
        self.frames: deque[Tensor] = deque(maxlen=simulator.spec.context_frames)
        self.actions: deque[Tensor] = deque(maxlen=max(simulator.spec.context_frames - 1, 1))

    def __call__(self, frames: Frames, active: NDArray[np.bool_]) -> ActionArray:
        """Return the actions of one time step; see ``TaskPolicy``."""
        self.frames.append(torch.from_numpy(frames))
        actions = super().__call__(frames, active)
        self.actions.append(torch.from_numpy(actions))
        return actions

    def find_problems(self, episodes: Tensor, seeds: Tensor) -> tuple[State, PlanningObjective]:
        """Observe the latest frames of episodes; see ``ReplanningPolicy.find_problems``."""
        context = torch.stack(list(self.frames), dim=1)[episodes]
        between = list(self.actions)[len(self.actions) - context.shape[1] + 1 :]
        context_actions = torch.stack(between, dim=1)[episodes] if between else None
        state, _ = self.simulator.reset(context, seeds, context_actions)
        return state, self.objective(self.goals[episodes.to(self.goals.device)])


def run_task_policy(task: GoalTask, policy: TaskPolicy, max_steps: int, keep_frames: int = 8) -> TaskRollout:
    """Play all episodes of a task.

    Args:
        task: at its start.
        policy: called at every step.
        max_steps: largest number of steps.
        keep_frames: number of episodes whose frames are kept.
    """
    frames = task.frames()
    distances, states, kept = [task.distances()], [task.states()], [frames[:keep_frames]]
    over, steps = np.zeros(len(frames), bool), np.zeros(len(frames), np.int64)
    for _ in progress_bar(range(max_steps), desc=f"{len(frames)} episodes", unit="step"):
        if task.ends:
            over = task.solved(np.stack(distances, axis=1))
        if over.all():
            break
        steps += ~over
        task.step(policy(frames, ~over), ~over)
        frames = task.frames()
        distances.append(task.distances())
        states.append(task.states())
        kept.append(frames[:keep_frames])
    measured = np.stack(distances, axis=1)
    return TaskRollout(
        distances=measured,
        states=np.stack(states, axis=1),
        solved=task.solved(measured),
        steps=steps,
        frames=np.stack(kept),
    )


def still_task_policy(task: GoalTask) -> TaskPolicy:
    """Make a policy that does nothing: the action at rest in every step."""
    space = task.actions.space
    rest = np.zeros((len(task.envs), space.size), np.float32) + np.asarray(space.rest or 0, np.float32)
    return lambda frames, active: rest


def random_task_policy(task: GoalTask, seed: int) -> TaskPolicy:
    """Make a policy that draws every action uniformly; each part of composite ones by itself."""
    generator = np.random.default_rng([seed, 1])
    space = task.actions.space

    def act(frames: Frames, active: NDArray[np.bool_]) -> ActionArray:
        drawn = generator.uniform(-1, 1, (len(task.envs), space.size)).astype(np.float32)
        return space.from_flat(torch.from_numpy(drawn)).numpy()

    return act
