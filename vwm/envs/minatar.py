"""MinAtar (Young and Tian 2019, arXiv 1903.03176) as a Gymnasium environment that shows images.

Importing this module registers ``vwm/MinAtar-v0``. MinAtar's games are played on 10 x 10 cells, of which each channel
marks one kind of object; here every kind has a color.
"""

from __future__ import annotations

import colorsys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.envs.env_ids import MAX_ENV_SEED

MINATAR_ID = "vwm/MinAtar-v0"
MINATAR_FPS = 10.0
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
ACTION_NAMES = ("noop", "left", "up", "right", "down", "fire")
"""MinAtar's actions, of which each game has those that matter to it."""


class MinAtarEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """A game of MinAtar as images, uint8 [10 scale, 10 scale, 3]; of objects in one cell the last channel's shows.

    Args:
        game: one of ``GAMES``.
        render_mode: ``rgb_array`` or None; both render the observation.
        scale: side of a cell in pixels.
        sticky_actions: probability that the action before is repeated.
        ramping: whether the game becomes harder with time, where it can.
        full_action_space: whether a game has all of ``ACTION_NAMES``, so that one world can hold several games.

    Raises:
        ImportError: MinAtar is not installed.
        ValueError: there is no such game, or ``scale`` is below 1.
    """

    def __init__(
        self,
        game: str = "breakout",
        render_mode: str | None = None,
        scale: int = 2,
        sticky_actions: float = 0.1,
        ramping: bool = True,
        full_action_space: bool = False,
    ) -> None:
        if game not in GAMES or scale < 1:
            raise ValueError(f"game must be one of {', '.join(GAMES)} and scale 1 or more, got {game!r} and {scale}")
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": MINATAR_FPS}
        self.render_mode = render_mode
        self.scale = scale
        self._settings = {"env_name": game, "sticky_action_prob": sticky_actions, "difficulty_ramping": ramping}
        self._open(seed=0)
        self._actions = list(range(len(ACTION_NAMES))) if full_action_space else self._game.minimal_action_set()
        self._colors = _object_colors(self._game.state_shape()[2])
        self.observation_space = spaces.Box(0, 255, (10 * scale, 10 * scale, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions."""
        return [ACTION_NAMES[action] for action in self._actions]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._open(int(self.np_random.integers(MAX_ENV_SEED)))
        return self.render(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one action; after the end of an episode, ``reset`` must be called."""
        reward, terminated = self._game.act(self._actions[int(action)])
        return self.render(), float(reward), bool(terminated), False, {}

    def render(self) -> NDArray[np.uint8]:
        """Return the observation."""
        state = self._game.state()
        last = np.where(state.any(2), state.shape[2] - state[..., ::-1].argmax(2), 0)
        return self._colors[last].repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def _open(self, seed: int) -> None:
        """Start a new game: MinAtar's own ``reset`` would keep the action that may be repeated."""
        from minatar import Environment

        self._game = Environment(**self._settings)
        self._game.seed(seed)
        self._game.reset()


def _object_colors(count: int) -> NDArray[np.uint8]:
    """Return black, then hues that are evenly spaced: uint8 [count + 1, 3]."""
    hues = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(i / count, 0.8, 1.0) for i in range(count))]
    return (255 * np.array(hues)).round().astype(np.uint8)


if MINATAR_ID not in gymnasium.registry:
    gymnasium.register(MINATAR_ID, entry_point=f"{__name__}:MinAtarEnv")
