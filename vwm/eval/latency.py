"""Latency of a simulator step: how long a player waits for a frame."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from vwm.core.command_output import progress_bar
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.eval.rollouts import random_action_sequences

WARM_UP_STEPS = 3


def measure_step_latency(simulator: Simulator, context: Tensor, seed: int = 0, steps: int = 30) -> Tensor:
    """Measure each step of a single world, from the action to the pixels in main memory.

    Args:
        simulator: the world.
        context: uint8 [t, h, w, 3], context frames.
        seed: seed of the world and of its random actions.
        steps: number of timed steps, after a few warm-up steps.

    Returns:
        float64 [steps], in milliseconds.
    """
    actions = random_action_sequences(simulator.spec.actions, world_seeds(seed, 1), WARM_UP_STEPS + steps)
    state, _ = simulator.reset(context[None], seed)
    times = []
    for i in progress_bar(range(WARM_UP_STEPS + steps), desc="speed", unit="frame"):
        began = time.perf_counter()
        state, out = simulator.step(state, actions[:, i])
        out.frames.cpu()  # waits for an accelerator too
        times.append(1000 * (time.perf_counter() - began))
    return torch.tensor(times[WARM_UP_STEPS:], dtype=torch.float64)
