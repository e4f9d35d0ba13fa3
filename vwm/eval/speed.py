"""How long does a player wait for a frame?"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from tqdm import tqdm

from vwm.eval.rollout import random_actions
from vwm.nn.random import world_seeds
from vwm.simulator.interface import Simulator

WARM_UP = 3


def step_latency(simulator: Simulator, context: Tensor, seed: int = 0, steps: int = 30) -> Tensor:
    """Time of each step of a single world, from the action to the pixels in main memory.

    Args:
        simulator: the world.
        context: uint8 [t, h, w, 3], what the world continues.
        seed: of the world and its random actions.
        steps: how many to time, after some that warm up.

    Returns:
        float64 [steps], in milliseconds.
    """
    actions = random_actions(simulator.actions, world_seeds(seed, 1), WARM_UP + steps)
    state, _ = simulator.reset(context[None], seed)
    times = []
    for i in tqdm(range(WARM_UP + steps), desc="speed", unit="frame", disable=None):
        began = time.perf_counter()
        state, out = simulator.step(state, actions[:, i])
        assert out.frame is not None
        out.frame.cpu()  # waits for an accelerator too
        times.append(1000 * (time.perf_counter() - began))
    return torch.tensor(times[WARM_UP:], dtype=torch.float64)
