"""A dark room with a sprite that keys move and a lamp that a pointer moves: the smallest game of keys and a mouse.

Importing this module makes ``vwm/Lamp-v0`` known to Gymnasium. Lengths are pixels; x goes right, y goes down.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart
from vwm.envs.render_mode import check_render_mode

LAMP_ID = "vwm/Lamp-v0"

ROOM_SIZE = 64
"""Side of the room and of its image."""
SPRITE_SIZE = 8
"""Side of the sprite, a square."""
SPRITE_SPEED, LAMP_SPEED = 2.0, 6.0
"""Way of the sprite for a held key, and of the lamp for a full movement of the pointer, in one step."""
LAMP_RADIUS = 14.0
"""Distance from the lamp's center at which its light ends; the sprite is lit within half of it."""
AMBIENT_LIGHT = 0.25
LAMP_COLORS = {"red": (1.0, 0.25, 0.2), "green": (0.2, 1.0, 0.3), "blue": (0.25, 0.4, 1.0)}
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


class LampEnv(gymnasium.Env[NDArray[np.uint8], dict[str, Any]]):
    """Keep the light on the sprite: the reward is 1 in every step in which the lamp lights it.

    Observations are images, uint8 [64, 64, 3]. An action is a dictionary of the lamp's ``color`` (one of three), the
    held ``keys`` (left, right, up and down; any of them together) and the relative movement of the ``pointer`` (right
    and down, in [-1, 1]). No episode ends by itself.

    Args:
        render_mode: ``"rgb_array"`` lets ``render`` return the image.

    Raises:
        ValueError: another render mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's declaration)
    state_names = ("sprite x", "sprite y", "lamp x", "lamp y", "color")
    """Names of the values of ``state``."""
    action_parts = (
        ActionPart("choice", len(LAMP_COLORS), "color", tuple(LAMP_COLORS)),
        ActionPart("keys", len(MOVES), "keys", tuple(MOVES)),
        ActionPart("pointer"),
    )
    """The parts of the actions with their names."""

    def __init__(self, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (ROOM_SIZE, ROOM_SIZE, 3), np.uint8)
        self.action_space = spaces.Dict(
            color=spaces.Discrete(len(LAMP_COLORS)),
            keys=spaces.MultiBinary(len(MOVES)),
            pointer=spaces.Box(-1.0, 1.0, (2,), np.float32),
        )
        self.sprite = self.lamp = np.full(2, np.nan)  # nowhere before the first reset
        self.color = 0

    @property
    def state(self) -> NDArray[np.float32]:
        """Return the positions and the lamp's color: float32 [5], see ``state_names``."""
        return np.array([*self.sprite, *self.lamp, self.color], np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode with sprite and lamp at random positions."""
        super().reset(seed=seed)
        self.sprite, self.lamp = self.np_random.uniform(SPRITE_SIZE, ROOM_SIZE - SPRITE_SIZE, (2, 2))
        self.color = int(self.np_random.integers(len(LAMP_COLORS)))
        return self._image(), {}

    def step(self, action: dict[str, Any]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move sprite and lamp, each up to the walls, and set the lamp's color."""
        if np.isnan(self.sprite).any():
            raise ResetNeeded("call reset() first")
        keys = np.asarray(action["keys"], np.float64)
        pointer = np.clip(np.asarray(action["pointer"], np.float64), -1, 1)
        edge = SPRITE_SIZE / 2
        move = SPRITE_SPEED * (keys @ np.array(list(MOVES.values())))
        self.sprite = np.clip(self.sprite + move, edge, ROOM_SIZE - edge)
        self.lamp = np.clip(self.lamp + LAMP_SPEED * pointer, 0, ROOM_SIZE)
        self.color = int(action["color"])
        lit = bool(np.linalg.norm(self.sprite - self.lamp) <= LAMP_RADIUS / 2)
        return self._image(), float(lit), False, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the image; None without a render mode."""
        return None if self.render_mode is None else self._image()

    def _image(self) -> NDArray[np.uint8]:
        """Draw the floor and the sprite in the light of the room and the lamp: uint8 [64, 64, 3]."""
        centers = np.arange(ROOM_SIZE) + 0.5
        x, y = np.meshgrid(centers, centers)
        tiles = np.where((x // 8 + y // 8) % 2 == 0, 0.45, 0.6)
        surface = np.repeat(tiles[..., None], 3, axis=-1)
        covers = [
            np.clip(SPRITE_SIZE / 2 + 0.5 - np.abs(at - c), 0, 1) for at, c in zip((x, y), self.sprite, strict=True)
        ]
        cover = (covers[0] * covers[1])[..., None]
        surface = surface * (1 - cover) + np.array([1.0, 0.95, 0.8]) * cover
        distance = np.hypot(x - self.lamp[0], y - self.lamp[1])
        strength = np.clip(1 - distance / LAMP_RADIUS, 0, 1)[..., None]
        light = AMBIENT_LIGHT + strength * np.array(list(LAMP_COLORS.values())[self.color])
        return (np.clip(surface * light, 0, 1) * 255).astype(np.uint8)


if LAMP_ID not in gymnasium.registry:
    # Episodes are truncated, so that a recording has many starts.
    gymnasium.register(LAMP_ID, entry_point=f"{__name__}:LampEnv", max_episode_steps=200)
