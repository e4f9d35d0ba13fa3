"""Imagined against real returns: what a world model predicts for the episodes that its agent has played.

The model is shown the episode again every few decisions, and predicts the rewards of the actions that the agent took
from there on. Where the sum of these predictions exceeds the real return, the model promises the agent what it does not
get, and planning or learning in it exploits its errors.

Legend: n windows, h decisions of a window, c observations of a context, t time steps of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.simulator import Simulator


class Trajectory(NamedTuple):
    """An episode, or its beginning.

    Attributes:
        observations: [t + 1, ...], the last of them after the last action.
        actions: int64 [t] or float32 [t, a].
        rewards: float32 [t], of the actions.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor

    @property
    def real_return(self) -> float:
        """The undiscounted sum of rewards."""
        return float(self.rewards.double().sum())


@torch.no_grad()
def imagined_return(simulator: Simulator, trajectory: Trajectory, horizon: int, seed: int = 0) -> float:
    """Sum the rewards that a world model predicts for an episode's actions, in windows of ``horizon`` decisions.

    Every window begins with the real observations of the window before it (the first one with the episode's first
    observation). Within a window, nothing counts after a predicted termination.

    Args:
        simulator: the world model.
        trajectory: the episode.
        horizon: h, how far the agent looks ahead.
        seed: of a stochastic world model.
    """
    steps = len(trajectory.actions)
    starts = range(0, steps, horizon)
    total = _imagine_windows(simulator, trajectory, starts[:1], 1, horizon, seed)
    if len(starts) > 1:
        total += _imagine_windows(simulator, trajectory, starts[1:], horizon + 1, horizon, seed + 1)
    return total


def _imagine_windows(
    simulator: Simulator, trajectory: Trajectory, starts: Sequence[int], context: int, horizon: int, seed: int
) -> float:
    """Sum the predicted rewards of windows that start at decisions with ``context`` observations up to each."""
    last = len(trajectory.actions) - 1
    first = torch.tensor(starts)[:, None]
    shown = first + torch.arange(1 - context, 1)
    ahead = first + torch.arange(horizon)
    between = trajectory.actions[shown[:, :-1]] if context > 1 else None
    state, _ = simulator.reset(trajectory.observations[shown], seed, between)
    counts = torch.ones(len(starts), dtype=torch.bool)
    total = 0.0
    for decision in ahead.unbind(1):
        state, output = simulator.step(state, trajectory.actions[decision.clamp(max=last)], decode=False)
        total += float(output.reward.cpu().double()[counts & (decision <= last)].sum())
        counts &= ~output.terminated.cpu()
    return total
