"""What a population of linear controllers earns: in a dream, or in the real game.

All controllers of a generation meet the same starts and the same luck, so that what differs is what they do.

Legend: p controllers, n parameters, b worlds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.agents.controller import Driver, LinearController, linear_actions
from vwm.agents.environments import Game
from vwm.agents.evaluate import evaluate
from vwm.data.clips import ClipDataset
from vwm.data.order import ClipAddress
from vwm.nn.random import world_seeds
from vwm.nn.state import concatenate, select
from vwm.simulator.mdn_rnn import MDNRNNSimulator, MDNRNNState

CHUNK = 256
"""Starting frames that V takes in at a time."""


class Fitness(ABC):
    """What controllers are bred for."""

    @abstractmethod
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """The mean return of each controller [p, n], over rollouts that are a function of ``seed``: [p]."""


class Dream(Fitness):
    """Rollouts in a world that was learned, all of a generation as one batch.

    Args:
        world: the dream.
        starts: uint8 [m, t, h, w, 3], contexts to begin from.
        rollouts: of each controller.
        horizon: steps after which a rollout is cut.
        reward: ``model`` adds up what M foretells, ``survival`` counts the steps until the world ends.
        temperature: of the dream; the world's own, or harsher.

    Raises:
        ValueError: ``model`` in a world without rewards, or counts below 1.
    """

    def __init__(
        self,
        world: MDNRNNSimulator,
        starts: torch.Tensor,
        rollouts: int,
        horizon: int,
        reward: Literal["model", "survival"],
        temperature: float,
    ) -> None:
        if min(rollouts, horizon) < 1:
            raise ValueError(f"rollouts={rollouts} and horizon={horizon} must be 1 or more")
        if reward == "model" and world.dynamics.reward_head is None:
            raise ValueError(
                "reward=model, but this world's dynamics knows no rewards: train it with dynamics.reward=true, or "
                "count the steps survived (reward=survival)"
            )
        self.world, self.rollouts, self.horizon, self.reward = world, rollouts, horizon, reward
        self.temperature = temperature
        self.starts: MDNRNNState = concatenate([world.reset(piece)[0] for piece in starts.split(CHUNK)])

    @torch.inference_mode()
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``Fitness``. A world that has ended leaves the batch."""
        world, count = self.world, len(parameters)
        begun = np.random.default_rng(seed).integers(len(self.starts.seed), size=self.rollouts)
        luck = world_seeds(seed, self.rollouts, world.device)
        state = select(self.starts, torch.from_numpy(begun).repeat(count).to(world.device))
        state = state._replace(seed=luck.repeat(count))
        own = torch.from_numpy(parameters).float().to(world.device).repeat_interleave(self.rollouts, dim=0)
        features = own.shape[1] // world.actions.size - 1
        earned = torch.zeros(len(own), dtype=torch.float64, device=world.device)
        alive = torch.arange(len(own), device=world.device)
        sampling, world.sampling = world.sampling, world.sampling._replace(temperature=self.temperature)
        try:
            for _ in range(self.horizon):
                action = linear_actions(own[alive], world.features(state)[:, :features], world.actions)
                state, out = world.step(state, action, decode=False)
                earned[alive] += 1.0 if self.reward == "survival" else out.reward.double()
                if out.terminated.any():
                    state, alive = select(state, ~out.terminated), alive[~out.terminated]
                    if not len(alive):
                        break
        finally:
            world.sampling = sampling
        means: NDArray[np.float64] = earned.view(count, self.rollouts).mean(1).cpu().numpy()
        return means


class Reality(Fitness):
    """Rollouts in the real game, followed by V and M.

    Args:
        world: V and M.
        game: what is played.
        rollouts: of each controller.
    """

    def __init__(self, world: MDNRNNSimulator, game: Game, rollouts: int) -> None:
        self.world, self.game, self.rollouts = world, game, rollouts

    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``Fitness``."""
        return np.array([self.play(own, self.rollouts, seed).mean() for own in parameters])

    def play(self, parameters: NDArray[np.float64] | None, episodes: int, seed: int) -> NDArray[np.float64]:
        """The returns of one controller [n], or of random actions: [episodes]."""
        driver = None
        if parameters is not None:
            controller = LinearController.of(torch.from_numpy(parameters), self.world.actions)
            opened = self.game.open(1, seed)
            driver = Driver(self.world, controller, opened.spaces)
            opened.close()
        return evaluate(driver, self.game, episodes, seed).returns


def episode_starts(dataset: ClipDataset) -> torch.Tensor:
    """The beginning of every episode, uint8 [m, t, h, w, 3]; those shorter than a clip are left out."""
    places = [
        ClipAddress(s, e, 0, 0)
        for s, shard in enumerate(dataset.shards)
        for e, episode in enumerate(shard.episodes)
        if episode.frames >= dataset.clip_length
    ]
    return torch.stack([torch.from_numpy(dataset.read(place)["frames"].copy()) for place in places])
