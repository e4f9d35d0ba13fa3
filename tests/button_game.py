"""An environment of 8x8 pixels with four buttons, one of which is rewarded, and a world with that reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from factories import diffusion_world
from gymnasium import spaces

from vwm.data.episode import Episode
from vwm.data.shards import ShardWriter
from vwm.models.dit.simulator import DiTSimulator
from vwm.nn.outcome_heads import RewardTerminationHeads

REWARDED_ACTION = 2
LENGTH = 6


class Buttons(gymnasium.Env[Any, Any]):
    """Observations are noise; button 2 has reward 1, and the episode terminates after six presses."""

    observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = spaces.Discrete(4)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's declaration)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_presses = 0
        return self._noise(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_presses += 1
        return self._noise(), float(action == REWARDED_ACTION), self.num_presses == LENGTH, False, {}

    def _noise(self) -> Any:
        return self.np_random.integers(256, size=(8, 8, 3), dtype=np.uint8)


gymnasium.register("Buttons-v0", Buttons)


def learned_world(steps: int = 100) -> DiTSimulator:
    """A diffusion world whose outcome heads are trained on the rewards of the buttons; it never terminates."""
    simulator = diffusion_world()
    torch.manual_seed(0)
    heads, dynamics = RewardTerminationHeads(width=32, hidden=32), simulator.dynamics
    optimizer = torch.optim.Adam(heads.parameters(), 1e-2)
    actions = torch.arange(4).repeat(16)[None]
    action_embedding = dynamics.embed_actions(actions).detach()
    reward, terminated = (actions == REWARDED_ACTION).float(), torch.zeros(1, 64, dtype=torch.bool)
    for _ in range(steps):
        features = torch.randn(1, 64, 32) / 2
        optimizer.zero_grad()
        sum(heads.losses(features, action_embedding, reward, terminated)).backward()
        optimizer.step()
    simulator.outcomes = heads.eval().requires_grad_(False)
    return simulator


def record(folder: Path, length: int = 12, size: int = 8) -> Path:
    """Write three episodes with random actions."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for key in "abc":
            frames = rng.integers(256, size=(length, size, size, 3), dtype=np.uint8)
            actions = rng.integers(4, size=length)
            writer.write(
                key, Episode(frames, actions, (actions == REWARDED_ACTION).astype(np.float32), terminated=True)
            )
    return folder
