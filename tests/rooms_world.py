"""The true dynamics of Two-Rooms as a simulator, to test planners without model errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator, SimulatorSpec, StepOutput
from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.two_rooms import (
    AGENT_COLOR,
    ARENA_SIZE,
    GOAL_RADIUS,
    WALL_COLOR,
    TwoRoomsEnv,
    move_with_collisions,
    render_two_rooms,
    sample_room_layout,
)
from vwm.planning.goal_distance import GoalDistance
from vwm.planning.sampling_planner import SamplingPlanner

COMPASS = torch.tensor([[0.0, 0.0], [1, 0], [-1, 0], [0, 1], [0, -1]])
"""Moves of the discrete actions: none, right, left, down, up."""


class RoomsState(NamedTuple):
    position: Tensor  # float64 [b, 2]
    layout: Tensor  # float64 [b, 2], wall and door
    seed: Tensor


class ExactRooms(Simulator):
    """Latents are (x, y) in pixels. Context frames have wall and door in the middle."""

    def __init__(self, kind: str = "continuous", step_size: float = 3.0) -> None:
        actions = ActionSpace(kind, 2) if kind == "continuous" else ActionSpace(kind, len(COMPASS))
        self.spec = SimulatorSpec(
            ObservationSpace.image(ARENA_SIZE, ARENA_SIZE), actions, fps=10.0, context_frames=2, stochastic=False
        )
        self.step_size, self.steps = step_size, 0

    def encode(self, frames: Tensor) -> Tensor:
        """Locate the agent in frames uint8 [b, t, h, w, 3]; return float32 [b, t, 2]."""
        brightness = (frames[..., 0].double() - WALL_COLOR[0]).clamp(min=0) / (AGENT_COLOR[0] - WALL_COLOR[0])
        agent_mask, pixel_centers = brightness.clamp(max=1), torch.arange(ARENA_SIZE) + 0.5
        total = agent_mask.sum(dim=(-1, -2))
        x, y = (
            (agent_mask.sum(-2) * pixel_centers).sum(-1) / total,
            (agent_mask.sum(-1) * pixel_centers).sum(-1) / total,
        )
        return torch.stack((x, y), dim=-1).float()

    def reset(self, context, seed=0, context_actions=None):
        self.check_context(context)
        position = self.encode(context)[:, -1].double()
        return self.at(position, torch.full_like(position, ARENA_SIZE / 2), seed), context[:, -1]

    def at(self, position: Tensor, layout: Tensor, seed: int = 0) -> RoomsState:
        return RoomsState(position.double(), layout.double(), world_seeds(seed, len(position)))

    def step(self, state, action, decode=True):
        batch = len(state.seed)
        self.check_action(action, batch)
        self.steps += batch
        move = (COMPASS[action] if self.spec.actions.kind == "discrete" else action).double() * self.step_size
        position = torch.from_numpy(move_with_collisions(state.position, move, *state.layout.T.numpy()))
        frames = (
            [render_two_rooms(p, *layout) for p, layout in zip(position, state.layout.tolist(), strict=True)]
            if decode
            else None
        )
        return state._replace(position=position), StepOutput(
            None if frames is None else torch.from_numpy(np.stack(frames)),
            position.float(),
            torch.zeros(batch),
            torch.zeros(batch, dtype=torch.bool),
        )


def pairs(count: int, rooms: str) -> tuple[RoomsState, Tensor]:
    """Draw starts with random walls and doors, and goals float32 [count, 2] in the ``same room`` or the other one."""
    rng, env, found = np.random.default_rng(0), TwoRoomsEnv(), []
    while len(found) < count:
        env.wall, env.door = sample_room_layout(rng)
        env.position = env.sample_position(rng)
        goal = env.sample_goal(rng)
        if ((env.position[0] < env.wall) == (goal[0] < env.wall)) == (rooms == "same room"):
            found.append((env.position, (env.wall, env.door), goal))
    starts, layouts, goals = (torch.tensor(np.array(x)) for x in zip(*found, strict=True))
    return ExactRooms().at(starts, layouts), goals.float()


def drive(
    planner: SamplingPlanner,
    state: RoomsState,
    goals: Tensor,
    kind: str = "continuous",
    reduction: str = "min",
    replan_every: int = 2,
) -> int:
    """Plan and take 60 steps in the true dynamics, and count the problems that reached the goal."""
    world, objective, reached = ExactRooms(kind), GoalDistance(goals, "l2", reduction), torch.zeros(len(goals)).bool()
    plan = None
    for t in range(60):
        if t % replan_every == 0:
            previous = None if plan is None else planner.shift_plan(plan, replan_every)
            plan = planner.plan(world, state, objective, t, previous)
        state, output = world.step(state, plan.actions[:, t % replan_every], decode=False)
        reached |= (output.latent - goals).norm(dim=1) <= GOAL_RADIUS
        if reached.all():
            break
    return int(reached.sum())
