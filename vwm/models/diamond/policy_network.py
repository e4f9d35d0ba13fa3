"""DIAMOND's policy, which was trained in its worlds: convolutions and an LSTM over frames.

Legend: b batch, h w pixels, d width of the LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.diamond.blocks import PlainResBlock, check_levels, conv3x3
from vwm.models.diamond.outcome_model import halved_grid, init_lstm


class RecurrentPolicyOutput(NamedTuple):
    """Logits of actions, float [b, k], the value, float [b], and the memory after the frame, float [b, d] each."""

    logits: Tensor
    value: Tensor
    memory: tuple[Tensor, Tensor]


class PolicyFrameEncoder(nn.Module):
    """Convolutions of a frame; named as in the published weights (``encoder``)."""

    def __init__(self, channels: list[int], halve: list[bool]) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(3, channels[0])]
        for level, width in enumerate(channels):
            layers.append(PlainResBlock(channels[max(0, level - 1)], width))
            if halve[level]:
                layers.append(nn.MaxPool2d(2))
        self.encoder = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        """float [b, 3, h, w] -> float [b, c, h', w']."""
        encoded: Tensor = self.encoder(frames)
        return encoded


class DiamondPolicyNetwork(ModelMixin, ConfigMixin):
    """An actor and a critic over an LSTM.

    Args:
        num_actions: number of discrete actions.
        image_size: (height, width) of frames.
        channels: of each level of resolution.
        halve: whether each level ends with a halving of the resolution.
        lstm_width: d.

    Raises:
        ValueError: the settings name different numbers of levels, or the frame cannot be halved often enough.
    """

    @register_to_config
    def __init__(
        self,
        num_actions: int = 4,
        image_size: tuple[int, int] = (64, 64),
        channels: list[int] = [32, 32, 64, 64],  # noqa: B006
        halve: list[bool] = [True, True, True, True],  # noqa: B006
        lstm_width: int = 512,
    ) -> None:
        super().__init__()
        check_levels(channels=channels, halve=halve)
        self.num_actions = num_actions
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.encoder = PolicyFrameEncoder(channels, halve)
        grid = halved_grid(self.image_size, sum(map(bool, halve)))
        self.lstm = nn.LSTMCell(channels[-1] * grid[0] * grid[1], lstm_width)
        self.critic_linear = nn.Linear(lstm_width, 1)
        self.actor_linear = nn.Linear(lstm_width, num_actions)
        for layer in (self.actor_linear, self.critic_linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        init_lstm(self.lstm)

    def init_memory(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the memory before the first frame."""
        zeros = self.actor_linear.weight.new_zeros(batch, self.lstm.hidden_size)
        return zeros, zeros

    def forward(self, memory: tuple[Tensor, Tensor], frames: Tensor) -> RecurrentPolicyOutput:
        """Choose and value, from the memory before and frames [b, 3, h, w] in [-1, 1]."""
        encoded = self.encoder(frames.to(self.actor_linear.weight.dtype)).flatten(1)
        output, cell = self.lstm(encoded, memory)
        return RecurrentPolicyOutput(self.actor_linear(output), self.critic_linear(output)[:, 0], (output, cell))
