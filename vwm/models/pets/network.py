"""A bootstrapped ensemble of probabilistic networks (PETS, Chua et al., arXiv 1805.12114, section 4).

Each member predicts a normal distribution of the change of the observation and of the reward: its variance is the
noise of the environment, and the disagreement of the members is what they do not know.

Legend: m members, b batch, k size of an observation, a size of an action or number of discrete actions.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.nn.member_linear import MemberLinear
from vwm.nn.precision import at_least_float32

BOUND_LOSS_SCALE = 0.01
"""Weight of the loss that pulls the learned bounds of the log variances together (the authors' code)."""
INITIAL_BOUNDS = (-10.0, 0.5)
SMALLEST_INPUT_STD = 1e-6


class EnsemblePrediction(NamedTuple):
    """What the members predict.

    Attributes:
        mean, log_variance: float [m, b, k + 1], of the change of the observation, and of the reward.
        termination_logit: float [m, b]; where terminations are not predicted, minus infinity.
    """

    mean: Tensor
    log_variance: Tensor
    termination_logit: Tensor


class ProbabilisticEnsemble(ModelMixin, ConfigMixin):
    """Members of the same shape with weights of their own, computed together.

    Args:
        observation_size: k.
        num_actions: number of discrete actions; 0 for continuous ones.
        action_dims: size of continuous actions.
        members: m, at least 2.
        width, layers: of the hidden layers.
        predict_termination: whether members predict the ends of episodes.

    Raises:
        ValueError: fewer than two members, or both or neither kind of actions.
    """

    input_mean: Tensor
    input_square: Tensor
    inputs_seen: Tensor

    @register_to_config
    def __init__(
        self,
        observation_size: int = 3,
        num_actions: int = 0,
        action_dims: int = 1,
        members: int = 5,
        width: int = 200,
        layers: int = 3,
        predict_termination: bool = True,
    ) -> None:
        super().__init__()
        check_positive(observation_size=observation_size, width=width, layers=layers)
        if members < 2:
            raise ValueError(f"members={members} must be 2 or more, since their disagreement is what they do not know")
        if bool(num_actions) == bool(action_dims):
            raise ValueError(f"give num_actions={num_actions} or action_dims={action_dims}, and 0 for the other")
        self.members = members
        inputs, outputs = observation_size + (num_actions or action_dims), 2 * (observation_size + 1)
        sizes = [inputs, *[width] * layers, outputs + predict_termination]
        self.linear_layers = nn.ModuleList(MemberLinear(members, *pair) for pair in pairwise(sizes))
        self.min_log_variance = nn.Parameter(torch.full((observation_size + 1,), INITIAL_BOUNDS[0]))
        self.max_log_variance = nn.Parameter(torch.full((observation_size + 1,), INITIAL_BOUNDS[1]))
        self.register_buffer("input_mean", torch.zeros(inputs))
        self.register_buffer("input_square", torch.ones(inputs))
        self.register_buffer("inputs_seen", torch.zeros((), dtype=torch.float64))

    def inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """Join observations [..., k] and actions, int64 [...] or float [..., a], to [..., k + a]."""
        if self.config.num_actions:
            action = F.one_hot(action, self.config.num_actions)
        return torch.cat((observation.float(), action.float()), dim=-1)

    @torch.no_grad()
    def count_inputs(self, inputs: Tensor) -> None:
        """Add inputs [b, k + a] to the mean and variance by which inputs are normalized, in place."""
        self.inputs_seen += len(inputs)
        share = (len(inputs) / self.inputs_seen).to(inputs.dtype)
        self.input_mean.lerp_(inputs.mean(0), share)
        self.input_square.lerp_(inputs.square().mean(0), share)

    def forward(self, inputs: Tensor) -> EnsemblePrediction:
        """Predict from inputs [m, b, k + a], each member from its own."""
        std = (self.input_square - self.input_mean.square()).clamp(min=0).sqrt()
        std = torch.where(std < SMALLEST_INPUT_STD, torch.ones_like(std), std)
        hidden = ((inputs - self.input_mean) / std).to(self.input_mean.dtype)
        for layer in self.linear_layers[:-1]:
            hidden = F.silu(layer(hidden))
        outputs = at_least_float32(self.linear_layers[-1](hidden))
        size = self.config.observation_size + 1
        log_variance = self.max_log_variance - F.softplus(self.max_log_variance - outputs[..., size : 2 * size])
        log_variance = self.min_log_variance + F.softplus(log_variance - self.min_log_variance)
        never = outputs.new_full((), -math.inf)
        logit = outputs[..., -1] if self.config.predict_termination else never.expand(outputs.shape[:-1])
        return EnsemblePrediction(outputs[..., :size], log_variance, logit)

    def loss(
        self, inputs: Tensor, change: Tensor, reward: Tensor, terminal: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the members' losses, and what to log.

        The loss of a member is the negative log-likelihood of its transitions (up to a constant, twice), plus the
        cross-entropy of terminations.

        Args:
            inputs: float [b, k + a].
            change: float [b, k], of the observation.
            reward: float [b].
            terminal: bool [b].
            weights: float [m, b], how often each transition occurs in the bootstrap sample of each member.
        """
        predicted = self(inputs.expand(self.members, -1, -1))
        target = torch.cat((change, reward[:, None]), dim=-1)
        squared = (predicted.mean - target).square()
        likelihood = (squared * (-predicted.log_variance).exp() + predicted.log_variance).mean(-1)
        shares = weights / weights.sum(1, keepdim=True).clamp(min=1)
        loss = (shares * likelihood).sum()
        loss = loss + BOUND_LOSS_SCALE * (self.max_log_variance.sum() - self.min_log_variance.sum())
        logs = {"likelihood_loss": loss.detach(), "squared_error": (shares * squared.mean(-1)).sum(1).mean().detach()}
        if self.config.predict_termination:
            ends = F.binary_cross_entropy_with_logits(
                predicted.termination_logit, terminal.float().expand(self.members, -1), reduction="none"
            )
            logs["termination_loss"] = (shares * ends).sum().detach()
            loss = loss + (shares * ends).sum()
        return loss, logs
