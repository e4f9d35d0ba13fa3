"""The reward head of mmbench2: reads the agent tokens of a frame, and predicts its reward and the next ones'."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.dreamer4.block_causal import GatedPerceptron
from vwm.nn.two_hot import symexp


class Dreamer4RewardHead(ModelMixin, ConfigMixin):
    """Predict rewards from agent tokens, as distributions over bins in symlog space.

    The names of the weights are the published ones.

    Args:
        width: of the agent tokens.
        hidden: of the perceptron.
        rewards: number of rewards that are predicted, that of the frame first.
        bins: number of bins.
        limit: symlog of the outermost bin.
    """

    @register_to_config
    def __init__(
        self, width: int = 512, hidden: int = 682, rewards: int = 8, bins: int = 101, limit: float = 8.0
    ) -> None:
        super().__init__()
        self.rewards = rewards
        self.pool_query = nn.Parameter(torch.randn(width) * 0.02)
        self.pool_kv = nn.Linear(width, 2 * width, bias=False)
        self.projector = GatedPerceptron(width, hidden)
        self.out = nn.Linear(width, rewards * bins)
        self.register_buffer("centers_log", torch.linspace(-limit, limit, bins, dtype=torch.float32))

    def forward(self, agents: Tensor) -> Tensor:
        """Predict the reward of frames: agent tokens [b, k, d] -> float32 [b]."""
        keys, values = self.pool_kv(agents).chunk(2, dim=-1)
        weights = ((keys * self.pool_query).sum(-1) / math.sqrt(keys.shape[-1])).softmax(-1)
        pooled = (weights[..., None] * values).sum(dim=1)
        logits = self.out(self.projector(pooled)).unflatten(-1, (self.rewards, -1))[:, 0]
        centers: Tensor = self.get_buffer("centers_log")
        return symexp((logits.float().softmax(-1) * centers.float()).sum(-1))
