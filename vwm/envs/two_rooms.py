"""Two rooms and a door: the smallest environment in which the straight path to a goal is often blocked.

Importing this module makes ``vwm/TwoRooms-v0`` known to Gymnasium. Lengths are pixels; x goes right, y goes down, and
pixel (row, column) covers the square from (column, row) to (column + 1, row + 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from vwm.envs.goal_env import GoalEnv

TWO_ROOMS_ID = "vwm/TwoRooms-v0"

ARENA_SIZE = 64
"""Side of the arena and of its image, in pixels."""
BORDER_WIDTH = 2
"""Thickness of the outer walls."""
WALL_THICKNESS, DOOR_WIDTH = 4.0, 12.0
"""Thickness of the wall between the rooms, and size of its door."""
AGENT_RADIUS = 2.5
"""Radius of the agent, a disc."""
GOAL_RADIUS = 4.0
"""Distance of the agent's center from a goal within which the goal is reached."""
MIN_COORDINATE, MAX_COORDINATE = BORDER_WIDTH + AGENT_RADIUS, ARENA_SIZE - BORDER_WIDTH - AGENT_RADIUS
"""Range of the agent's center in x and in y."""
POSITION_TOLERANCE = 1e-4
"""Tolerance of positions."""
BACKGROUND_COLOR, WALL_COLOR, AGENT_COLOR = ((0, 0, 0), (70, 110, 200), (255, 170, 60))
"""Colors."""

Position = NDArray[np.float64]
FloatOrArray = NDArray[np.float64] | float


class TwoRoomsEnv(GoalEnv[NDArray[np.uint8]]):
    """A disc in a square arena, which a wall with a door cuts into a left and a right room.

    Observations are images, uint8 [64, 64, 3], drawn anti-aliased so that fractions of a pixel show. Actions in
    [-1, 1]^2 (right, down) move the disc by at most ``step_size`` pixels; a wall removes the component of a
    move that would enter it, so that the agent slides along it. A goal is a position that is not drawn: ``render_at``
    draws the image that the agent would see there.

    ``reset(options=...)`` takes ``start`` and ``goal`` ((x, y) each), ``wall`` (x of the wall) and ``door`` (y of the
    door's middle); what it omits is drawn at random. ``info`` holds ``goal`` and ``distance``.

    Args:
        random_wall: draw the positions of wall and door in every episode; otherwise they are in the middle.
        step_size: pixels that an action of 1 moves the agent along its axis.
        terminate: end the episode at the goal; without it no episode ends by itself.
        render_mode: ``"rgb_array"`` lets ``render`` return the image.

    Raises:
        ValueError: ``step_size`` is not above 0, or another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's declaration)
    option_names = ("start", "goal", "wall", "door")
    state_names = ("x", "y", "wall", "door")

    def __init__(
        self,
        random_wall: bool = False,
        step_size: float = 3.0,
        terminate: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0 pixels, got {step_size}")
        super().__init__(terminate, render_mode)
        self.random_wall = random_wall
        self.step_size = step_size
        self.observation_space = spaces.Box(0, 255, (ARENA_SIZE, ARENA_SIZE, 3), np.uint8)
        self.wall = self.door = ARENA_SIZE / 2
        self.position: Position = np.full(2, np.nan)  # nowhere before the first reset

    @property
    def state(self) -> NDArray[np.float32]:
        """Return the positions of agent, wall and door: float32 [4], see ``state_names``."""
        return np.array([*self._current_position(), self.wall, self.door], np.float32)

    def start(self, options: Mapping[str, Any]) -> None:
        """See ``GoalEnv.start``."""
        wall, door = sample_room_layout(self.np_random) if self.random_wall else (ARENA_SIZE / 2, ARENA_SIZE / 2)
        self.wall, self.door = _check_layout(options.get("wall", wall), options.get("door", door))
        start, goal = self.sample_position(self.np_random), self.sample_position(self.np_random)
        self.position = self._check_position("start", options.get("start", start))
        self.goal = self._check_position("goal", options.get("goal", goal))

    def move(self, action: NDArray[np.float64]) -> None:
        """Move the agent, up to the walls."""
        self.position = move_with_collisions(self._current_position(), self.step_size * action, self.wall, self.door)

    def at_goal(self) -> bool:
        """Return whether the agent is within ``GOAL_RADIUS`` of the goal."""
        return self._distance() <= GOAL_RADIUS

    def observe(self) -> NDArray[np.uint8]:
        """Return the image."""
        return self.draw()

    def draw(self) -> NDArray[np.uint8]:
        """Draw the agent where it is: uint8 [64, 64, 3]."""
        return self.render_at(self._current_position())

    def info(self) -> dict[str, Any]:
        """See ``GoalEnv.info``; also the distance to the goal, in pixels."""
        return {**super().info(), "distance": self._distance()}

    def render_at(self, position: ArrayLike) -> NDArray[np.uint8]:
        """Draw the agent at (x, y) with the wall and door of this episode: uint8 [64, 64, 3]."""
        return render_two_rooms(position, self.wall, self.door)

    def sample_position(self, rng: np.random.Generator) -> Position:
        """Draw a free position uniformly: float64 [2]."""
        # Nearly a fifth of the arena is within the wall: of 64 positions at least one is free.
        positions = rng.uniform(MIN_COORDINATE, MAX_COORDINATE, (64, 2))
        return positions[is_free_position(positions, self.wall, self.door).argmax()]

    def sample_goal(self, rng: np.random.Generator) -> Position:
        """Draw a goal that is not reached yet: float64 [2]."""
        while True:
            goal = self.sample_position(rng)
            if np.linalg.norm(goal - self._current_position()) > GOAL_RADIUS:
                return goal

    def _current_position(self) -> Position:
        if np.isnan(self.position).any():
            raise ResetNeeded("call reset() first")
        return self.position

    def _distance(self) -> float:
        return float(np.linalg.norm(self._current_position() - self.goal))

    def _check_position(self, name: str, given: ArrayLike) -> Position:
        position = np.array(given, np.float64)
        if position.shape != (2,) or not is_free_position(position, self.wall, self.door):
            raise ValueError(
                f"options[{name!r}] must be (x, y) with x and y in {MIN_COORDINATE}..{MAX_COORDINATE} and not "
                f"within the wall (x = {self.wall:g}, door at y = {self.door:g}), got {given!r}"
            )
        return position


def sample_room_layout(rng: np.random.Generator) -> tuple[float, float]:
    """Draw positions of wall and door: x in the middle half of the arena, y such that the whole door fits."""
    return float(rng.uniform(ARENA_SIZE / 4, 3 * ARENA_SIZE / 4)), float(
        rng.uniform(BORDER_WIDTH + DOOR_WIDTH / 2, ARENA_SIZE - BORDER_WIDTH - DOOR_WIDTH / 2)
    )


def is_free_position(position: ArrayLike, wall: FloatOrArray, door: FloatOrArray) -> NDArray[np.bool_]:
    """Return whether positions are free: float [..., 2] with wall and door [...] -> bool [...]."""
    at = np.asarray(position, np.float64)
    left, right, top, bottom = _wall_and_door_edges(wall, door)
    inside = ((at >= MIN_COORDINATE) & (at <= MAX_COORDINATE)).all(axis=-1)
    beside = (at[..., 0] <= left) | (at[..., 0] >= right)
    return inside & (beside | ((at[..., 1] >= top) & (at[..., 1] <= bottom)))


def move_with_collisions(position: ArrayLike, step: ArrayLike, wall: FloatOrArray, door: FloatOrArray) -> Position:
    """Move the agent, first along x and then along y, each until a wall stops it: no move crosses a wall.

    Args:
        position: the current position, float [..., 2], which must be free.
        step: the displacement without walls, float [..., 2], of any length.
        wall: x of the wall, [...].
        door: y of the door's middle, [...].

    Returns:
        The new position, float64 [..., 2].
    """
    at, step = np.asarray(position, np.float64), np.asarray(step, np.float64)
    x, y = at[..., 0], at[..., 1]
    left, right, top, bottom = _wall_and_door_edges(wall, door)
    # Positions that were rounded (to float32, in a recording) stay on the same side of the wall.
    beside_left, beside_right = x <= left + POSITION_TOLERANCE, x >= right - POSITION_TOLERANCE
    in_door = (y >= top - POSITION_TOLERANCE) & (y <= bottom + POSITION_TOLERANCE)
    low, high = (
        np.where(beside_right & ~in_door, right, MIN_COORDINATE),
        np.where(beside_left & ~in_door, left, MAX_COORDINATE),
    )
    x = np.clip(x + step[..., 0], low, high)
    in_wall = (x > left + POSITION_TOLERANCE) & (x < right - POSITION_TOLERANCE)
    y = np.clip(y + step[..., 1], np.where(in_wall, top, MIN_COORDINATE), np.where(in_wall, bottom, MAX_COORDINATE))
    return np.stack([x, y], axis=-1)


def _wall_and_door_edges(
    wall: FloatOrArray, door: FloatOrArray
) -> tuple[FloatOrArray, FloatOrArray, FloatOrArray, FloatOrArray]:
    """Return left and right of the wall, and top and bottom of the door, for the agent's center."""
    return (
        wall - (WALL_THICKNESS / 2 + AGENT_RADIUS),
        wall + (WALL_THICKNESS / 2 + AGENT_RADIUS),
        door - (DOOR_WIDTH / 2 - AGENT_RADIUS),
        door + (DOOR_WIDTH / 2 - AGENT_RADIUS),
    )


def render_two_rooms(position: ArrayLike, wall: float, door: float) -> NDArray[np.uint8]:
    """Draw the image, uint8 [64, 64, 3], with anti-aliased edges."""
    edges = np.arange(ARENA_SIZE)
    across = _pixel_coverage(edges, wall - WALL_THICKNESS / 2, wall + WALL_THICKNESS / 2)
    opening = _pixel_coverage(edges, door - DOOR_WIDTH / 2, door + DOOR_WIDTH / 2)
    wall_coverage = (1 - opening)[:, None] * across
    for side in (slice(0, BORDER_WIDTH), slice(ARENA_SIZE - BORDER_WIDTH, ARENA_SIZE)):
        wall_coverage[side] = 1
        wall_coverage[:, side] = 1
    x, y = np.asarray(position, np.float64)
    distance = np.hypot(edges + 0.5 - x, (edges + 0.5 - y)[:, None])
    agent = np.clip(AGENT_RADIUS + 0.5 - distance, 0, 1)[..., None]
    image = BACKGROUND_COLOR + wall_coverage[..., None] * (np.array(WALL_COLOR) - BACKGROUND_COLOR)
    return (image * (1 - agent) + agent * AGENT_COLOR).round().astype(np.uint8)


def _pixel_coverage(edges: NDArray[np.int64], low: float, high: float) -> NDArray[np.float64]:
    """Return the fraction of each pixel of a row that lies between ``low`` and ``high``: float [n] from 0 to 1."""
    return np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low), 0, 1)


def _check_layout(wall: Any, door: Any) -> tuple[float, float]:
    wall, door = float(wall), float(door)
    side, reach = 2 * AGENT_RADIUS + WALL_THICKNESS / 2, DOOR_WIDTH / 2
    if not (
        BORDER_WIDTH + side <= wall <= ARENA_SIZE - BORDER_WIDTH - side
        and BORDER_WIDTH + reach <= door <= ARENA_SIZE - BORDER_WIDTH - reach
    ):
        raise ValueError(
            f"options['wall'] must lie in {BORDER_WIDTH + side:g}..{ARENA_SIZE - BORDER_WIDTH - side:g} and "
            f"options['door'] in "
            f"{BORDER_WIDTH + reach:g}..{ARENA_SIZE - BORDER_WIDTH - reach:g}, got {wall:g} and {door:g}"
        )
    return wall, door


if TWO_ROOMS_ID not in gymnasium.registry:
    # Episodes are truncated, so that a recording has many starts (and, with random_wall, many walls).
    gymnasium.register(TWO_ROOMS_ID, entry_point=f"{__name__}:TwoRoomsEnv", max_episode_steps=100)
