"""Time steps to fill a replay buffer with, which name themselves."""

import torch

from vwm.core.spaces import ActionSpace, ObservationSpace
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.rl.replay_buffer import ReplayBuffer

SPACES = EnvSpaces(ObservationSpace.of_shape((2,)), ActionSpace("discrete", 3))
EXTRAS = {"value": ((), torch.float32)}
NUM_ENVS = 3


def fill(replay: ReplayBuffer, start: int, end: int, episode: int = 7) -> None:
    """Add time steps: step t of environment i observes (t, i); an episode has ``episode`` time steps."""
    env_indices = torch.arange(NUM_ENVS).float()
    for t in range(start, end):
        is_first = torch.full((NUM_ENVS,), t % episode == 0)
        is_last = torch.full((NUM_ENVS,), t % episode == episode - 1)
        time_step = TimeStep(
            torch.stack((torch.full((NUM_ENVS,), float(t)), env_indices), -1),
            env_indices + t,
            is_first,
            is_last,
            is_last,
        )
        replay.add(time_step, torch.full((NUM_ENVS,), t % 3), {"value": env_indices * 0 + t})
