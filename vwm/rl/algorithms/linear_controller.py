"""The linear controller (C) of World Models (arXiv 1803.10122), and the policy that acts with it.

Legend: b batch, z size of a frame's latent, d size of the recurrent state, f features (z, or z + d), a actions or
action dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.core.spaces import ActionSpace
from vwm.core.states import merge_states
from vwm.envs.time_step import EnvSpaces, TimeStep
from vwm.models.mdn_rnn.simulator import MDNRNNSimulator, MDNRNNState
from vwm.rl.agent import PolicyStep

INITIAL_REST_FRACTION = 0.95
"""Fraction of the rest value at which a continuous action starts, since tanh does not reach 1."""


def linear_controller_actions(parameters: Tensor, features: Tensor, space: ActionSpace) -> Tensor:
    """Return the actions of linear controllers, one per environment.

    Args:
        parameters: float [b, a * f + a], each controller's weight matrix by rows, then its bias.
        features: float [b, f].
        space: the action space.

    Returns:
        The discrete action with the largest logit, int64 [b], or the tanh of each dimension, float32 [b, a].
    """
    matrix, bias = parameters[:, : -space.size].unflatten(1, (space.size, -1)), parameters[:, -space.size :]
    outputs = torch.einsum("baf,bf->ba", matrix, features) + bias
    return outputs.argmax(-1) if space.kind == "discrete" else outputs.tanh()


def initial_controller_parameters(features: int, space: ActionSpace) -> NDArray[np.float64]:
    """Return initial parameters, [a * f + a]: zero weights, and biases that give every dimension its rest value."""
    rest = INITIAL_REST_FRACTION * np.array(space.rest or [0.0] * space.size)
    return np.concatenate((np.zeros(features * space.size), np.arctanh(rest)))


class LinearController(ModelMixin, ConfigMixin):
    """A controller that can be saved.

    Args:
        features: f, number of the simulator's features that it uses, counted from the first: z or z + d.
        actions: a, size of the action space.
    """

    @register_to_config
    def __init__(self, features: int = 288, actions: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(features, actions)

    @classmethod
    def from_parameters(cls, parameters: Tensor, space: ActionSpace) -> LinearController:
        """Make a controller from parameters [a * f + a]."""
        controller = cls(len(parameters) // space.size - 1, space.size)
        nn.utils.vector_to_parameters(parameters.float(), controller.parameters())
        return controller.eval().requires_grad_(False)

    def forward(self, features: Tensor, space: ActionSpace) -> Tensor:
        """Return actions, int64 [b] or float32 [b, a], for features [b, at least f]."""
        used = features[:, : self.linear.in_features]
        parameters = nn.utils.parameters_to_vector(self.parameters())
        return linear_controller_actions(parameters.expand(len(used), -1), used, space)


class ControllerCarry(NamedTuple):
    """The simulator's state at the last frame, and the action taken there."""

    state: MDNRNNState
    action: Tensor


class ControllerPolicy:
    """Acts in a real environment with a controller on the features of a simulator that observes every frame.

    Args:
        simulator: the MDN-RNN simulator.
        controller: maps the simulator's features to actions.
        spaces: of the environment.

    Raises:
        ValueError: the simulator does not fit the environment.
    """

    def __init__(self, simulator: MDNRNNSimulator, controller: LinearController, spaces: EnvSpaces) -> None:
        if spaces.observation.shape != simulator.spec.context.shape:
            raise ValueError(
                f"the world sees frames {list(simulator.spec.context.shape)}, the environment "
                f"shows {list(spaces.observation.shape)}: set its pixels and size"
            )
        given, expected = spaces.actions, simulator.spec.actions
        if (given.kind, given.size) != (expected.kind, expected.size):
            raise ValueError(
                f"the world was trained with {expected.size} {expected.kind} actions, the environment takes "
                f"{given.size} {given.kind} ones"
            )
        self.simulator = simulator
        self.controller = controller.to(simulator.device)
        self.spaces = spaces

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.simulator.device

    def init_carry(self, batch: int) -> ControllerCarry:
        """See ``Agent.init_carry``."""
        action = torch.zeros(batch, *self.spaces.actions.shape, dtype=self.spaces.actions.dtype, device=self.device)
        return ControllerCarry(self.simulator.init_state(batch), action)

    @torch.inference_mode()
    def act(self, carry: ControllerCarry, time_step: TimeStep, explore: bool) -> PolicyStep:
        """See ``Agent.act``; a controller does not explore."""
        state = self.simulator.observe(carry.state, carry.action, time_step.observation)
        initial = self.simulator.init_state(len(state.latent))._replace(latent=state.latent)  # with an empty memory
        state = merge_states(time_step.is_first.to(self.device), initial, state)
        action = self.controller(self.simulator.features(state), self.simulator.spec.actions)
        return PolicyStep(action, ControllerCarry(state, action), {})
