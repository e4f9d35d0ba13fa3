"""DIAMOND's model of rewards and terminations: convolutions of two frames and the action between them, and an LSTM.

Legend: b batch, t time, h w pixels, d width of the LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.diamond.blocks import HalvingConv, ResBlockStack, check_levels, conv3x3, descending_channels

NUM_REWARDS = 3
"""Classes of a reward: its sign."""


class OutcomeMemory(NamedTuple):
    """The state of the LSTM, output and cell, float [b, d] each."""

    output: Tensor
    cell: Tensor


class OutcomeLogits(NamedTuple):
    """Logits of the reward's sign, float [b, t, 3] for -1, 0 and 1, and of going on or terminating, [b, t, 2]."""

    reward: Tensor
    termination: Tensor


class TransitionEncoder(nn.Module):
    """Convolutions of two frames under the action between them; named as in the published weights (``encoder``)."""

    def __init__(self, condition_width: int, depths: list[int], channels: list[int], attention: list[bool]) -> None:
        super().__init__()
        check_levels(depths=depths, channels=channels, attention=attention)
        self.conv_in = conv3x3(6, channels[0])
        last = channels[-1]
        levels = zip(descending_channels(channels, depths), attention, strict=True)
        blocks = [ResBlockStack(sizes, condition_width, bool(attends)) for sizes, attends in levels]
        self.blocks = nn.ModuleList([*blocks, ResBlockStack([(last, last)] * 2, condition_width, attention=True)])
        halvings = [HalvingConv(c) for c in channels[:-1]]
        self.downsamples = nn.ModuleList([nn.Identity(), *halvings, nn.Identity()])

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        """float [b, 6, h, w] and a condition -> float [b, c, h', w']."""
        x = self.conv_in(images)
        for block, halve in zip(self.blocks, self.downsamples, strict=True):
            x = block(halve(x), condition)[-1]
        return x


class DiamondOutcomeModel(ModelMixin, ConfigMixin):
    """Predicts the sign of the reward and the termination of each transition, from all transitions before it.

    Args:
        num_actions: number of discrete actions.
        image_size: (height, width) of frames.
        condition_width: width of an action's embedding.
        depths, channels, attention: of each level of resolution.
        lstm_width: d.

    Raises:
        ValueError: the settings name different numbers of levels, or the frame cannot be halved often enough.
    """

    @register_to_config
    def __init__(
        self,
        num_actions: int = 4,
        image_size: tuple[int, int] = (64, 64),
        condition_width: int = 128,
        depths: list[int] = [2, 2, 2, 2],  # noqa: B006
        channels: list[int] = [32, 32, 32, 32],  # noqa: B006
        attention: list[bool] = [False, False, False, False],  # noqa: B006
        lstm_width: int = 512,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.encoder = TransitionEncoder(condition_width, depths, channels, attention)
        self.act_emb = nn.Embedding(num_actions, condition_width)
        grid = halved_grid(self.image_size, len(channels) - 1)
        self.lstm = nn.LSTM(channels[-1] * grid[0] * grid[1], lstm_width, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(lstm_width, lstm_width), nn.SiLU(), nn.Linear(lstm_width, NUM_REWARDS + 2, bias=False)
        )
        init_lstm(self.lstm)

    def init_memory(self, batch: int) -> OutcomeMemory:
        """Return the memory before the first transition."""
        zeros = self.act_emb.weight.new_zeros(batch, self.lstm.hidden_size)
        return OutcomeMemory(zeros, zeros)

    def forward(
        self, memory: OutcomeMemory, frames: Tensor, actions: Tensor, next_frames: Tensor
    ) -> tuple[OutcomeMemory, OutcomeLogits]:
        """Predict the outcomes of transitions.

        Args:
            memory: of those before.
            frames, next_frames: float [b, t, 3, h, w] in [-1, 1].
            actions: int64 [b, t].
        """
        images = torch.cat((frames, next_frames), dim=2).flatten(0, 1).to(self.act_emb.weight.dtype)
        encoded = self.encoder(images, self.act_emb(actions.flatten()))
        before = (memory.output[None], memory.cell[None])
        outputs, (output, cell) = self.lstm(encoded.flatten(1).unflatten(0, actions.shape), before)
        logits = self.head(outputs)
        after = OutcomeMemory(output[0], cell[0])
        return after, OutcomeLogits(logits[..., :NUM_REWARDS], logits[..., NUM_REWARDS:])


def halved_grid(image_size: tuple[int, int], halvings: int) -> tuple[int, int]:
    """Return the size of an image after halvings. Raises ValueError unless it divides evenly."""
    factor = 2**halvings
    if any(side % factor for side in image_size):
        raise ValueError(f"image_size={image_size} must be a multiple of {factor}, to be halved {halvings} times")
    return image_size[0] // factor, image_size[1] // factor


def init_lstm(lstm: nn.LSTM | nn.LSTMCell) -> None:
    """Initialize as DIAMOND does: orthogonal recurrence, Xavier inputs, and forget gates that begin open."""
    for name, weight in lstm.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(weight)
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(weight)
        else:
            nn.init.zeros_(weight)
            if name.startswith("bias_ih"):
                nn.init.ones_(weight.data.chunk(4)[1])
