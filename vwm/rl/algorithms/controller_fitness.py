"""Fitness of a population of linear controllers: mean returns in a simulator, or in the real environment.

All controllers of a generation start from the same contexts with the same seeds, so that only their actions differ.

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
"""Contexts that are encoded at a time."""


class ControllerFitness(ABC):
    """The quantity that evolution maximizes."""

    @abstractmethod
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """Return the mean return of each controller [p, n] over rollouts that are a function of ``seed``: [p]."""


class SimulatedFitness(ControllerFitness):
    """Rollouts in a simulator, all of a generation as one batch.

    Args:
        simulator: the MDN-RNN simulator.
        contexts: uint8 [m, t, h, w, 3], frames that rollouts start from.
        rollouts: number of rollouts of each controller.
        horizon: steps after which a rollout is cut off.
        reward: ``model`` adds up the rewards that the simulator predicts, ``survival`` counts the steps until it ends.
        temperature: of the simulator's sampling.

    Raises:
        ValueError: ``reward`` is ``model`` but the simulator predicts no rewards, or a count is below 1.
    """

    def __init__(
        self,
        simulator: MDNRNNSimulator,
        contexts: torch.Tensor,
        rollouts: int,
        horizon: int,
        reward: Literal["model", "survival"],
        temperature: float,
    ) -> None:
        if min(rollouts, horizon) < 1:
            raise ValueError(f"rollouts={rollouts} and horizon={horizon} must be 1 or more")
        if reward == "model" and not simulator.predicts_reward:
            raise ValueError(
                "reward=model, but this world's dynamics predicts no rewards: train it with dynamics.reward=true, "
                "or count the steps survived (reward=survival)"
            )
        self.simulator = simulator.with_sampling(temperature=temperature)
        self.rollouts = rollouts
        self.horizon = horizon
        self.reward = reward
        self.initial_states: MDNRNNState = concatenate_states(
            [simulator.reset(chunk)[0] for chunk in contexts.split(ENCODE_CHUNK_SIZE)]
        )

    @torch.inference_mode()
    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``ControllerFitness``. A rollout whose episode has ended leaves the batch."""
        simulator, count = self.simulator, len(parameters)
        start_indices = np.random.default_rng(seed).integers(len(self.initial_states.seed), size=self.rollouts)
        seeds = world_seeds(seed, self.rollouts, simulator.device)
        state = select_worlds(self.initial_states, torch.from_numpy(start_indices).repeat(count).to(simulator.device))
        state = state._replace(seed=seeds.repeat(count))
        weights = torch.from_numpy(parameters).float().to(simulator.device).repeat_interleave(self.rollouts, dim=0)
        num_features = weights.shape[1] // simulator.spec.actions.size - 1
        returns = torch.zeros(len(weights), dtype=torch.float64, device=simulator.device)
        alive = torch.arange(len(weights), device=simulator.device)
        for _ in range(self.horizon):
            action = linear_controller_actions(
                weights[alive], simulator.features(state)[:, :num_features], simulator.spec.actions
            )
            state, out = simulator.step(state, action, decode=False)
            returns[alive] += 1.0 if self.reward == "survival" else out.reward.double()
            if out.terminated.any():
                state, alive = select_worlds(state, ~out.terminated), alive[~out.terminated]
                if not len(alive):
                    break
        means: NDArray[np.float64] = returns.view(count, self.rollouts).mean(1).cpu().numpy()
        return means


class RealEnvFitness(ControllerFitness):
    """Rollouts in the real environment, observed by the simulator.

    Args:
        simulator: the MDN-RNN simulator.
        env_spec: the real environment.
        rollouts: number of rollouts of each controller.
    """

    def __init__(self, simulator: MDNRNNSimulator, env_spec: EnvSpec, rollouts: int) -> None:
        self.simulator = simulator
        self.env_spec = env_spec
        self.rollouts = rollouts

    def __call__(self, parameters: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """See ``ControllerFitness``."""
        return np.array([self.evaluate_controller(row, self.rollouts, seed).mean() for row in parameters])

    def evaluate_controller(
        self, parameters: NDArray[np.float64] | None, episodes: int, seed: int
    ) -> NDArray[np.float64]:
        """Return the returns of one controller [n], or of random actions: [episodes]."""
        policy = None
        if parameters is not None:
            controller = LinearController.from_parameters(torch.from_numpy(parameters), self.simulator.spec.actions)
            envs = self.env_spec.open(1, seed)
            policy = ControllerPolicy(self.simulator, controller, envs.spaces)
            envs.close()
        return evaluate_policy(policy, self.env_spec, episodes, seed).returns


def episode_start_frames(dataset: ClipDataset) -> torch.Tensor:
    """Return the first clip of every episode, uint8 [m, t, h, w, 3]; episodes shorter than a clip are omitted."""
    addresses = [
        ClipAddress(s, e, 0, 0)
        for s, shard in enumerate(dataset.shards)
        for e, episode in enumerate(shard.episodes)
        if episode.frames >= dataset.clip_length
    ]
    return torch.stack([torch.from_numpy(dataset.read(address)["frames"].copy()) for address in addresses])
