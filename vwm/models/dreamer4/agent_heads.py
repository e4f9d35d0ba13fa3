"""The heads of mmbench2 that read the agent tokens of a frame: its reward and the next ones', and a cloned policy.

The names of the weights are the published ones.

Legend: b batch, k agent tokens, d width, a numbers of an action.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.dreamer4.block_causal import GatedPerceptron
from vwm.nn.two_hot import symexp


class Dreamer4AgentHead(ModelMixin, ConfigMixin):
    """Pool agent tokens by the attention of one learned query, and project them.

    Args:
        width: d.
        hidden: of the perceptron.
        predictions: number of frames that are predicted for, that of the agent tokens first.
        values: numbers of each prediction.
    """

    def __init__(self, width: int, hidden: int, predictions: int, values: int) -> None:
        super().__init__()
        self.width = width
        self.predictions = predictions
        self.pool_query = nn.Parameter(torch.randn(width) * 0.02)
        self.pool_kv = nn.Linear(width, 2 * width, bias=False)
        self.projector = GatedPerceptron(width, hidden)
        self.out = nn.Linear(width, predictions * values)

    def read_first(self, agents: Tensor) -> Tensor:
        """Predict for the frame of the agent tokens [b, k, d]: [b, values]."""
        agents = agents.to(self.out.weight.dtype)
        keys, values = self.pool_kv(agents).chunk(2, dim=-1)
        weights = ((keys * self.pool_query).sum(-1) / math.sqrt(self.width)).softmax(-1)
        pooled = (weights[..., None] * values).sum(dim=1)
        return self.out(self.projector(pooled)).unflatten(-1, (self.predictions, -1))[:, 0]


class Dreamer4RewardHead(Dreamer4AgentHead):
    """Predict rewards from agent tokens, as distributions over bins in symlog space.

    Args:
        width: d.
        hidden: of the perceptron.
        rewards: number of rewards that are predicted, that of the frame first.
        bins: number of bins.
        limit: symlog of the outermost bin.
    """

    @register_to_config
    def __init__(
        self, width: int = 512, hidden: int = 682, rewards: int = 8, bins: int = 101, limit: float = 8.0
    ) -> None:
        super().__init__(width, hidden, rewards, bins)
        self.register_buffer("centers_log", torch.linspace(-limit, limit, bins, dtype=torch.float32))

    def forward(self, agents: Tensor) -> Tensor:
        """Predict the reward of frames: agent tokens [b, k, d] -> float32 [b]."""
        logits = self.read_first(agents)
        centers: Tensor = self.get_buffer("centers_log")
        return symexp((logits.float().softmax(-1) * centers.float()).sum(-1))


class Dreamer4PolicyHead(Dreamer4AgentHead):
    """Imitate the recorded actions: from the agent tokens of a frame, the action that is taken there.

    Args:
        width: d.
        hidden: of the perceptron.
        steps: number of actions that are predicted, that of the frame first.
        action_inputs: a, of which a task uses the first.
    """

    @register_to_config
    def __init__(self, width: int = 512, hidden: int = 682, steps: int = 8, action_inputs: int = 16) -> None:
        super().__init__(width, hidden, steps, action_inputs)
        self.action_inputs = action_inputs

    def forward(self, agents: Tensor) -> Tensor:
        """Choose the action of frames: agent tokens [b, k, d] -> [b, a] in [-1, 1]."""
        return torch.tanh(self.read_first(agents))
