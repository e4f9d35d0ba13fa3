"""Planning in the true environment with the true distance: what a search reaches where the world makes no errors.

Legend: b problems, m worlds, s numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vwm.core.simulator import Simulator, SimulatorSpec, State, StepOutput
from vwm.core.spaces import ObservationSpace
from vwm.planning.goal_distance import GoalReduction, reduce_costs
from vwm.planning.goal_task import Floats, StateGoalTask
from vwm.planning.mpc_policy import ReplanningPolicy
from vwm.planning.sampling_planner import PlanningObjective, SamplingPlanner, SequenceRollout


class TrueDynamics(Simulator):
    """The environment of a task as a simulator; states, and latents, are its true states, float64 [m, s].

    It starts from states, and not from frames.
    """

    def __init__(self, task: StateGoalTask) -> None:
        self.task = task
        image = ObservationSpace.image(task.size, task.size)
        self.spec = SimulatorSpec(image, task.actions.space, fps=task.fps, context_frames=1, stochastic=False)

    def reset(
        self, context: Tensor, seed: int | Tensor = 0, context_actions: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """Frames do not show the whole state."""
        raise ValueError("the true dynamics start from states (GoalTask.states), not from frames")

    def step(self, state: State, action: Tensor, decode: bool = True) -> tuple[State, StepOutput]:
        """Take an action in every world; no frame is rendered. See ``Simulator.step``."""
        self.check_action(action, len(state))
        reached = torch.from_numpy(self.task.simulate(state.numpy(), action.numpy()))
        zeros = torch.zeros(len(reached))
        return reached, StepOutput(frame=None, latent=reached, reward=zeros, terminated=zeros.bool())

    def latent(self, state: State) -> Tensor:
        """Return the states themselves."""
        reached: Tensor = state
        return reached


class TrueDistance:
    """Cost of a sequence: the distance of its true states to the goal, reduced as ``GoalDistance`` does.

    Args:
        distances: maps states [m, s] and goals [m, ...] to float64 [m].
        goals: float64 [b, ...].
        reduction: see ``GoalDistance``.
    """

    def __init__(self, distances: Callable[[Floats, Floats], Floats], goals: Floats, reduction: GoalReduction) -> None:
        self.distances = distances
        self.goals = goals
        self.reduction: GoalReduction = reduction

    def step_cost(self, output: StepOutput, problem_index: Tensor) -> Tensor:
        """Return the distance after a step; see ``PlanningObjective.step_cost``."""
        return torch.from_numpy(self.distances(output.latent.numpy(), self.goals[problem_index.numpy()])).float()

    def sequence_cost(self, rollout: SequenceRollout) -> Tensor:
        """Reduce the distances over time; see ``PlanningObjective.sequence_cost``."""
        return reduce_costs(rollout.costs, self.reduction)


class TrueDynamicsPolicy(ReplanningPolicy):
    """Plan in the true dynamics from the true states of a task.

    Args:
        task: the episodes that are played.
        planner: the search.
        reduction: of distances over a plan.
        replan_every: steps of the task from one decision to the next.
        seed: see ``ReplanningPolicy``.
    """

    def __init__(
        self,
        task: StateGoalTask,
        planner: SamplingPlanner,
        reduction: GoalReduction = "min",
        replan_every: int = 2,
        seed: int | Tensor = 0,
    ) -> None:
        super().__init__(TrueDynamics(task), planner, len(task.envs), replan_every, seed)
        self.task = task
        self.reduction: GoalReduction = reduction
        self.goal_states = np.stack([task.goal_state(env) for env in task.envs])

    def find_problems(self, episodes: Tensor, seeds: Tensor) -> tuple[State, PlanningObjective]:
        """Return the current states of episodes, and the distance to their goals."""
        rows = episodes.numpy()
        goals = self.goal_states[rows]
        return (
            torch.from_numpy(self.task.states()[rows]),
            TrueDistance(self.task.state_distances, goals, self.reduction),
        )
