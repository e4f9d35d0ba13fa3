"""Fitness of a population of linear controllers: mean returns in a simulator, or in the real environment.

All controllers of a generation get the same starts and the same seeds, so that only their actions differ.

Legend: p controllers, n parameters, b environments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vwm.core.seeds import world_seeds
from vwm.core.states import concatenate_states, select_worlds
from vwm.data.clip_order import ClipAddress
from vwm.data.clips import ClipDataset
from vwm.envs.batched_envs import EnvSpec
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator, MDNRNNState
from vwm.rl.algorithms.linear_controller import ControllerPolicy, LinearController, linear_controller_actions
from vwm.rl.evaluation import evaluate_policy

ENCODE_CHUNK_SIZE = 256
"""Starting frames that V takes in at a time."""


class ControllerFitness(ABC):
    """The quantity that evolution maximizes."""

    @abstractmethod
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """Return the mean return of each controller [p, n] over rollouts that are a function of ``seed``: [p]."""


class SimulatedFitness(ControllerFitness):
    """Rollouts in a simulator, all of a generation as one batch.

    Args:
        world: the MDN-RNN simulator.
        starts: uint8 [m, t, h, w, 3], contexts to start from.
        rollouts: of each controller.
        horizon: steps after which a rollout is cut off.
        reward: ``model`` adds up the rewards that the simulator predicts, ``survival`` counts the steps until it ends.
        temperature: of the simulator's sampling.

    Raises:
        ValueError: ``reward`` is ``model`` but the simulator predicts no rewards, or a count is below 1.
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
        if reward == "model" and not world.predicts_reward:
            raise ValueError(
                "reward=model, but this world's dynamics knows no rewards: train it with dynamics.reward=true, or "
                "count the steps survived (reward=survival)"
            )
        self.world = world.with_sampling(temperature=temperature)
        self.rollouts = rollouts
        self.horizon = horizon
        self.reward = reward
        self.starts: MDNRNNState = concatenate_states(
            [world.reset(piece)[0] for piece in starts.split(ENCODE_CHUNK_SIZE)]
        )

    @torch.inference_mode()
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``ControllerFitness``. A rollout whose episode has ended leaves the batch."""
        world, count = self.world, len(parameters)
        begun = np.random.default_rng(seed).integers(len(self.starts.seed), size=self.rollouts)
        luck = world_seeds(seed, self.rollouts, world.device)
        state = select_worlds(self.starts, torch.from_numpy(begun).repeat(count).to(world.device))
        state = state._replace(seed=luck.repeat(count))
        own = torch.from_numpy(parameters).float().to(world.device).repeat_interleave(self.rollouts, dim=0)
        features = own.shape[1] // world.spec.actions.size - 1
        earned = torch.zeros(len(own), dtype=torch.float64, device=world.device)
        alive = torch.arange(len(own), device=world.device)
        for _ in range(self.horizon):
            action = linear_controller_actions(own[alive], world.features(state)[:, :features], world.spec.actions)
            state, out = world.step(state, action, decode=False)
            earned[alive] += 1.0 if self.reward == "survival" else out.reward.double()
            if out.terminated.any():
                state, alive = select_worlds(state, ~out.terminated), alive[~out.terminated]
                if not len(alive):
                    break
        means: NDArray[np.float64] = earned.view(count, self.rollouts).mean(1).cpu().numpy()
        return means


class RealEnvFitness(ControllerFitness):
    """Rollouts in the real environment, observed by the simulator.

    Args:
        world: the MDN-RNN simulator.
        game: the real environment.
        rollouts: of each controller.
    """

    def __init__(self, world: MDNRNNSimulator, game: EnvSpec, rollouts: int) -> None:
        self.world = world
        self.game = game
        self.rollouts = rollouts

    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``ControllerFitness``."""
        return np.array([self.play(own, self.rollouts, seed).mean() for own in parameters])

    def play(self, parameters: NDArray[np.float64] | None, episodes: int, seed: int) -> NDArray[np.float64]:
        """Return the returns of one controller [n], or of random actions: [episodes]."""
        driver = None
        if parameters is not None:
            controller = LinearController.of(torch.from_numpy(parameters), self.world.spec.actions)
            opened = self.game.open(1, seed)
            driver = ControllerPolicy(self.world, controller, opened.spaces)
            opened.close()
        return evaluate_policy(driver, self.game, episodes, seed).returns


def episode_start_frames(dataset: ClipDataset) -> torch.Tensor:
    """Return the beginning of every episode, uint8 [m, t, h, w, 3]; episodes shorter than a clip are omitted."""
    places = [
        ClipAddress(s, e, 0, 0)
        for s, shard in enumerate(dataset.shards)
        for e, episode in enumerate(shard.episodes)
        if episode.frames >= dataset.clip_length
    ]
    return torch.stack([torch.from_numpy(dataset.read(place)["frames"].copy()) for place in places])
