"""A Procgen game as a Gymnasium environment: what an agent plays of what ``vwm record procgen:...`` records."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vwm.envs.recording_envs import MAX_ENV_SEED, PROCGEN_FPS, PROCGEN_MAX_STEPS, make_procgen


class ProcgenEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """One copy of a game; observations are uint8 [64, 64, 3], actions the 15 that a recording names.

    Every episode is played in a game of its own, which is opened in a millisecond: so its level and all its luck are a
    function of the seed given to ``reset`` (or drawn from the one given last). Procgen shows the next episode's first
    picture where one ends; an episode's last picture is therefore its last but one again.

    Args:
        game: ``coinrun``, or another.
        render_mode: ``rgb_array`` or none; both show the observation.
        **options: of ``ProcgenGym3Env``: ``num_levels``, ``start_level``, ``distribution_mode``, ...

    Raises:
        ImportError: Procgen is not installed.
        ValueError: no such game, or an option that it does not take.
    """

    def __init__(self, game: str, render_mode: str | None = None, **options: Any) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": PROCGEN_FPS}
        self.render_mode, self._name, self._options = render_mode, game, options
        self._open(seed=0)
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._game.combos))

    def get_action_meanings(self) -> list[str]:
        """Names of the actions: the keys that each holds down."""
        return ["+".join(keys) or "NOOP" for keys in self._game.combos]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._game.close()
        self._open(int(self.np_random.integers(MAX_ENV_SEED)))
        return self._shown, {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One step; after an end the environment wants to be reset."""
        self._game.act(np.array([action]))
        self._steps += 1
        reward, observation, first = self._game.observe()
        over, late = bool(first[0]), self._steps >= PROCGEN_MAX_STEPS
        if not over:
            self._shown = observation["rgb"][0].copy()
        return self._shown, float(reward[0]), over and not late, over and late, {}

    def render(self) -> NDArray[np.uint8]:
        """What is observed."""
        return self._shown

    def close(self) -> None:
        """Free the game."""
        self._game.close()

    def _open(self, seed: int) -> None:
        self._game = make_procgen(self._name, 1, {**self._options, "rand_seed": seed})
        self._steps = 0
        _, observation, _ = self._game.observe()
        self._shown = observation["rgb"][0].copy()
