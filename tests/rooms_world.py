"""The true Two-Rooms behind the simulator interface, to tell a planner's faults from a learned world's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vwm.data.two_rooms import AGENT, SIZE, STONE, draw, slide
from vwm.nn.random import world_seeds
from vwm.simulator.interface import ActionSpace, Simulator, StepOutput

COMPASS = torch.tensor([[0.0, 0.0], [1, 0], [-1, 0], [0, 1], [0, -1]])
"""What the discrete actions do: rest, right, left, down, up."""


class RoomsState(NamedTuple):
    position: Tensor  # float64 [b, 2]
    layout: Tensor  # float64 [b, 2], wall and door
    seed: Tensor


class ExactRooms(Simulator):
    """Latents are (x, y) in pixels. Contexts are pictures with wall and door in the middle."""

    image_size, fps, context_frames = (SIZE, SIZE), 10.0, 2

    def __init__(self, kind: str = "continuous", step_size: float = 3.0) -> None:
        self.actions = ActionSpace(kind, 2) if kind == "continuous" else ActionSpace(kind, len(COMPASS))
        self.step_size, self.steps = step_size, 0

    def encode(self, frames: Tensor) -> Tensor:
        """Where the agent is seen: uint8 [b, t, h, w, 3] -> float32 [b, t, 2]."""
        shown = (frames[..., 0].double() - STONE[0]).clamp(min=0) / (AGENT[0] - STONE[0])
        seen, middle = shown.clamp(max=1), torch.arange(SIZE) + 0.5
        total = seen.sum(dim=(-1, -2))
        x, y = (seen.sum(-2) * middle).sum(-1) / total, (seen.sum(-1) * middle).sum(-1) / total
        return torch.stack((x, y), dim=-1).float()

    def reset(self, context, seed=0, context_actions=None):
        self.check_context(context)
        position = self.encode(context)[:, -1].double()
        return self.at(position, torch.full_like(position, SIZE / 2), seed), context[:, -1]

    def at(self, position: Tensor, layout: Tensor, seed: int = 0) -> RoomsState:
        return RoomsState(position.double(), layout.double(), world_seeds(seed, len(position)))

    def step(self, state, action, decode=True):
        batch = len(state.seed)
        self.check_action(action, batch)
        self.steps += batch
        move = (COMPASS[action] if self.actions.kind == "discrete" else action).double() * self.step_size
        position = torch.from_numpy(slide(state.position, move, *state.layout.T.numpy()))
        pictures = [draw(p, *layout) for p, layout in zip(position, state.layout, strict=True)] if decode else None
        return state._replace(position=position), StepOutput(
            None if pictures is None else torch.from_numpy(np.stack(pictures)),
            position.float(),
            torch.zeros(batch),
            torch.zeros(batch, dtype=torch.bool),
        )
