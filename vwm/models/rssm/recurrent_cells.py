"""Recurrent cells: how the deterministic part of a state moves on.

A cell is asked in two stages. ``prepare`` is what the actions bring, for all moments at once; ``forward`` is what has
to wait for the state before. All cells keep their state in [-1, 1] and begin at 0.

Legend: b batch, d deterministic width, s stochastic width, a action width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from vwm.nn.block_linear import BlockLinear
from vwm.nn.dense_layers import ActivationType, MultiInputDense, NormType, init_dense_weight
from vwm.nn.linear import OneDNNLinear

RecurrentCellType = Literal["gru", "norm_gru", "block_gru"]


class RecurrentCell(nn.Module, ABC):
    """See above."""

    @abstractmethod
    def prepare(self, action: Tensor) -> Tensor:
        """What actions bring: [..., a] -> [..., n]."""

    @abstractmethod
    def forward(self, deter: Tensor, stoch: Tensor, prepared: Tensor) -> Tensor:
        """[b, d], [b, s] and what ``prepare`` made of the action [b, n] -> the next [b, d]."""


class PlaNetGRUCell(RecurrentCell):
    """One layer and a gated recurrent unit (PlaNet, arXiv 1811.04551; Dreamer v1).

    Args:
        deter, stoch, action: widths of the state's two parts and of actions.
        hidden: width of the layer.
        norm, activation: of the layer.
    """

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int, norm: NormType, activation: ActivationType
    ) -> None:
        super().__init__()
        self.input = MultiInputDense([stoch, action], hidden, norm, activation)
        self.cell = nn.GRUCell(hidden, deter)
        for gates in self.cell.weight_ih.chunk(3):
            init_dense_weight(gates, hidden, deter, norm)
        for gates in self.cell.weight_hh.chunk(3):
            nn.init.orthogonal_(gates)

    def prepare(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.input.part(1, action)

    def forward(self, deter: Tensor, stoch: Tensor, prepared: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        x = self.input.finish(self.input.part(0, stoch) + prepared)
        moved: Tensor = self.cell(x, deter)
        return moved


class LayerNormGRUCell(RecurrentCell):
    """One layer and a gated recurrent unit with LayerNorm over its gates, which updates little at first (DreamerV2).

    Args:
        deter, stoch, action, hidden, norm, activation: see ``PlaNetGRUCell``.
    """

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int, norm: NormType, activation: ActivationType
    ) -> None:
        super().__init__()
        self.input = MultiInputDense([stoch, action], hidden, norm, activation)
        self.gates = OneDNNLinear(hidden + deter, 3 * deter, bias=False)
        init_dense_weight(self.gates.weight, hidden + deter, 3 * deter, norm)
        self.norm = nn.LayerNorm(3 * deter, eps=1e-3)

    def prepare(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.input.part(1, action)

    def forward(self, deter: Tensor, stoch: Tensor, prepared: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        x = self.input.finish(self.input.part(0, stoch) + prepared)
        return gru_update(deter, *self.norm(self.gates(torch.cat((x, deter), dim=-1))).chunk(3, dim=-1))


class BlockDiagonalGRUCell(RecurrentCell):
    """A gated recurrent unit whose large matrices are block-diagonal (DreamerV3, Nature 640, methods).

    State, variables and action go through a layer each; every block of the state sees all three and itself.

    Args:
        deter, stoch, action, hidden, norm, activation: see ``PlaNetGRUCell``.
        blocks: g, into which the state is cut.
    """

    def __init__(
        self,
        deter: int,
        stoch: int,
        action: int,
        hidden: int,
        norm: NormType,
        activation: ActivationType,
        blocks: int = 8,
    ) -> None:
        super().__init__()
        if deter % blocks:
            raise ValueError(f"blocks={blocks} must divide deter={deter}")
        block = deter // blocks
        self.of_deter = MultiInputDense([deter], hidden, norm, activation)
        self.of_stoch = MultiInputDense([stoch], hidden, norm, activation)
        self.action_projection = MultiInputDense([action], hidden, norm, activation)
        self.within = BlockLinear(deter, deter, blocks)
        self.mix = MultiInputDense([2 * hidden, hidden], deter, norm, activation)
        self.gates = BlockLinear(deter, deter, blocks, parts=3)
        for weight in (self.mix.parts[0].weight, self.mix.parts[1].weight, self.within.weight):
            assert isinstance(weight, Tensor)
            init_dense_weight(weight, block + 3 * hidden, block, norm)
        init_dense_weight(self.gates.weight, block, 3 * block, norm)

    def prepare(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.mix.part(1, self.action_projection(action))

    def forward(self, deter: Tensor, stoch: Tensor, prepared: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        common = torch.cat((self.of_deter(deter), self.of_stoch(stoch)), dim=-1)
        x = self.mix.finish(self.mix.part(0, common) + self.within(deter)[:, 0] + prepared)
        return gru_update(deter, *self.gates(x).unbind(1))


def gru_update(deter: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """The unit's step from its gates before the sigmoid [b, d]; by the -1 it starts out remembering."""
    new = torch.tanh(reset.sigmoid() * candidate)
    return torch.lerp(deter, new, (update - 1).sigmoid())
