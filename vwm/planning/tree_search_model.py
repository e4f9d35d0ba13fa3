"""The model that a tree search expands, and a discrete simulator as such a model.

Legend: b batch, a actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vwm.core.simulator import Simulator
from vwm.core.states import NestedState, state_batch_size


class NodePrediction(NamedTuple):
    """A model's prediction for states before any search: policy logits float [b, a] and value float [b]."""

    logits: Tensor
    value: Tensor


class TreeStep(NamedTuple):
    """The outcome of an action.

    Attributes:
        state: nested tensors [b, ...].
        reward: float [b].
        terminated: bool [b]; later rewards and values do not count.
        prediction: for the new states.
    """

    state: NestedState
    reward: Tensor
    terminated: Tensor
    prediction: NodePrediction


class TreeSearchModel(Protocol):
    """A model that a search tree expands."""

    def predict(self, state: NestedState) -> NodePrediction:
        """Predict policy and value of the root states."""
        ...

    def step(self, state: NestedState, action: Tensor) -> TreeStep:
        """Apply actions int64 [b]."""
        ...


class SimulatorTreeModel:
    """A simulator with discrete actions as the model of a search, with a uniform prior.

    Composite actions of few choices and keys are searched as one discrete action per combination.

    Args:
        simulator: the world; frames are not decoded. Its random numbers are a function of its state, so the tree plans
            for one outcome of its randomness.
        value: value of simulator states, float [b]; None takes 0.

    Raises:
        ValueError: its actions are continuous, or composite and cannot be enumerated.
    """

    def __init__(self, simulator: Simulator, value: Callable[[NestedState], Tensor] | None = None) -> None:
        try:
            self.actions = simulator.spec.actions.enumerated
        except ValueError as error:
            raise ValueError(
                f"tree search requires discrete actions: {error}; use a sampling planner (CEM, MPPI)"
            ) from error
        self.simulator = simulator
        self.value = value

    def predict(self, state: NestedState) -> NodePrediction:
        """Return a uniform prior and the value; see ``TreeSearchModel.predict``."""
        logits = torch.zeros(state_batch_size(state), self.actions.size)
        return NodePrediction(logits, torch.zeros(len(logits)) if self.value is None else self.value(state))

    def step(self, state: NestedState, action: Tensor) -> TreeStep:
        """Step the simulator; see ``TreeSearchModel.step``."""
        taken = self.simulator.spec.actions.from_enumerated(action)
        state, output = self.simulator.step(state, taken, decode=False)
        return TreeStep(state, output.reward, output.terminated, self.predict(state))
