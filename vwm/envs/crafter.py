"""Crafter (Hafner 2021, arXiv 2109.06780) as a Gymnasium environment.

Importing this module registers ``vwm/Crafter-v0``. Each of 22 achievements gives a reward of 1 once per episode, and
every change of health a tenth of its amount.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.envs.env_ids import MAX_ENV_SEED

CRAFTER_ID = "vwm/Crafter-v0"
CRAFTER_FPS = 5.0


class CrafterEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """Crafter with a new world in every episode; observations are uint8 [size, size, 3], actions 17.

    An episode ends with the player's death, and is truncated after ``length`` steps. ``info["achievements"]`` counts
    the achievements. Equal seeds and actions give equal episodes, which Crafter alone does not guarantee: it draws
    creatures from sets, whose order changes from run to run.

    Args:
        render_mode: ``rgb_array`` or None; both render the observation.
        size: side of the images in pixels.
        length: steps after which an episode is truncated.
        reward: False returns no rewards, for agents that explore without them.

    Raises:
        ImportError: Crafter is not installed.
    """

    def __init__(
        self, render_mode: str | None = None, size: int = 64, length: int = 10_000, reward: bool = True
    ) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": CRAFTER_FPS}
        self.render_mode = render_mode
        self._settings = {"size": (size, size), "length": length, "reward": reward}
        self._open(seed=0)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._game.action_names))

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions."""
        return list(self._game.action_names)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode in a new world."""
        super().reset(seed=seed)
        self._open(int(self.np_random.integers(MAX_ENV_SEED)))
        self._image: NDArray[np.uint8] = self._game.reset()
        return self._image, {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Take one action; after the end of an episode, ``reset`` must be called."""
        self._image, reward, done, info = self._game.step(int(action))
        died = not info["discount"]
        return self._image, float(reward), died, bool(done) and not died, {"achievements": info["achievements"]}

    def render(self) -> NDArray[np.uint8]:
        """Return the observation."""
        return self._image

    def _open(self, seed: int) -> None:
        import crafter

        self._game = crafter.Env(seed=seed, **self._settings)
        balance = self._game._balance_chunk

        def balance_in_order(chunk: Any, creatures: Collection[Any]) -> None:
            balance(
                chunk, sorted(creatures, key=lambda creature: tuple(creature.pos))
            )  # no two creatures share a position

        self._game._balance_chunk = balance_in_order


if CRAFTER_ID not in gymnasium.registry:
    gymnasium.register(CRAFTER_ID, entry_point=f"{__name__}:CrafterEnv")
