"""The physics of Push-T: a disc pushes a T-shaped block over a plane, by pymunk.

The task is Diffusion Policy's (Chi et al. 2023, arXiv 2303.04137): sizes, masses, gains and time steps are its own, so
that equal states and targets give equal motion. Lengths are units of an arena of 512; x goes right, y goes down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ARENA_SIZE = 512
"""Side of the arena."""
WALL_POSITIONS, WALL_RADIUS = (5, 506), 2
"""Coordinates of the walls, which hold the block and not the disc, and half their thickness."""
AGENT_RADIUS = 15
"""Radius of the disc."""
BAR = ((-60, 30), (60, 30), (60, 0), (-60, 0))
STEM = ((-15, 30), (-15, 120), (15, 120), (15, 30))
"""Corners of the two parts of the block, from its origin."""
CONTROL_SUBSTEPS, SUBSTEP_SECONDS = 10, 0.01
"""Physics steps for which one action holds, and the duration of each."""
POSITION_GAIN, VELOCITY_GAIN = 100, 20
"""Of the controller that moves the disc to its target."""
ACTION_SCALE = 100
"""Distance of the target from the disc for an action of 1."""

Vector = NDArray[np.float64]


class PushTPhysics:
    """The disc, the block and the walls.

    A state is (agent x, agent y, block x, block y, block angle, agent vx, agent vy); the block's own velocity is no
    part of it, because friction stops the block as soon as nothing pushes it.
    """

    def __init__(self) -> None:
        import pymunk

        self.space = pymunk.Space()
        self.space.damping = 0.0  # a velocity lasts for one physics step
        low, high = WALL_POSITIONS
        corners = [(low, high), (low, low), (high, low), (high, high)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            self.space.add(pymunk.Segment(self.space.static_body, start, end, WALL_RADIUS))
        self.agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self.space.add(self.agent, pymunk.Circle(self.agent, AGENT_RADIUS))
        # The original takes the bar's moment of inertia for both parts, each with the mass of the whole.
        self.block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, BAR))
        self.block_shapes = [pymunk.Poly(self.block, corners) for corners in (BAR, STEM)]
        first, second = (shape.center_of_gravity for shape in self.block_shapes)
        self.block.center_of_gravity = (first + second) / 2
        self.space.add(self.block, *self.block_shapes)

    @classmethod
    def at(cls, state: Vector) -> PushTPhysics:
        """Make the physics at a state, float64 [7], without the contacts of earlier steps."""
        physics = cls()
        physics.agent.position = tuple(state[:2])
        physics.agent.velocity = tuple(state[5:])
        physics.block.angle = float(state[4])  # turns about the center of gravity, so the position comes last
        physics.block.position = tuple(state[2:4])
        return physics

    @property
    def state(self) -> Vector:
        """The state, float64 [7], with the angle in [0, 2 pi)."""
        agent, block = self.agent, self.block
        return np.array([*agent.position, *block.position, block.angle % (2 * np.pi), *agent.velocity])

    def step(self, action: Vector) -> None:
        """Hold a target of ``ACTION_SCALE`` times ``action``, float [2], from the disc for a tenth of a second.

        The target stays in the arena, so that the disc is always seen.
        """
        target = np.clip(self.agent.position + ACTION_SCALE * np.asarray(action, np.float64), 0, ARENA_SIZE)
        for _ in range(CONTROL_SUBSTEPS):
            position, velocity = np.array(self.agent.position), np.array(self.agent.velocity)
            acceleration = POSITION_GAIN * (target - position) - VELOCITY_GAIN * velocity
            self.agent.velocity = tuple(velocity + acceleration * SUBSTEP_SECONDS)
            self.space.step(SUBSTEP_SECONDS)

    def gap(self, point: Vector) -> float:
        """Return the distance of a point from the block; negative inside of it."""
        self.space.reindex_shapes_for_body(self.block)
        return min(float(shape.point_query(tuple(point)).distance) for shape in self.block_shapes)

    def block_corners(self) -> list[Vector]:
        """Return the corners of the two parts of the block in the arena, float64 [4, 2] each."""
        return [np.array([self.block.local_to_world(corner) for corner in part]) for part in (BAR, STEM)]


def draw_push_t(physics: PushTPhysics, size: int) -> NDArray[np.uint8]:
    """Draw disc, block and walls with smooth edges, uint8 [size, size, 3]."""
    from PIL import Image, ImageDraw

    oversampling = 4
    scale = size * oversampling / ARENA_SIZE
    image: Any = Image.new("RGB", (size * oversampling,) * 2, "white")
    draw = ImageDraw.Draw(image)
    low, high = (position * scale for position in WALL_POSITIONS)
    draw.rectangle((low, low, high, high), outline="lightgray", width=max(1, round(2 * WALL_RADIUS * scale)))
    for corners in physics.block_corners():
        draw.polygon([tuple(corner) for corner in corners * scale], fill="lightslategray")
    x, y = (coordinate * scale for coordinate in physics.agent.position)
    radius = AGENT_RADIUS * scale
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="royalblue")
    return np.asarray(image.reduce(oversampling))
