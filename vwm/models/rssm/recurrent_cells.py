"""Recurrent cells: the update of the deterministic part of an RSSM state.

A cell is applied in two stages: ``project_action`` handles the actions of all time steps at once, ``forward`` the rest,
which has to wait for the previous state. All cells keep their state in [-1, 1]; the initial state is 0.

Dimensions: b batch, d deterministic size, s sample size of the stochastic part, a action size, n projection size.
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
    """Interface of the recurrent cells."""

    @abstractmethod
    def project_action(self, action: Tensor) -> Tensor:
        """Project encoded actions: [..., a] -> [..., n]."""

    @abstractmethod
    def forward(self, deter: Tensor, stoch: Tensor, projected_action: Tensor) -> Tensor:
        """Return the next deterministic state [b, d] from [b, d], [b, s] and ``project_action``'s [b, n]."""


class PlaNetGRUCell(RecurrentCell):
    """Dense layer followed by a GRU (PlaNet, arXiv 1811.04551; Dreamer v1).

    Args:
        deter: Size of the deterministic state.
        stoch: Size of the stochastic state.
        action: Size of an encoded action.
        hidden: Width of the dense layer.
        norm: Normalization of the dense layer.
        activation: Activation of the dense layer.
    """

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int, norm: NormType, activation: ActivationType
    ) -> None:
        super().__init__()
        self.input = MultiInputDense([stoch, action], width=hidden, norm=norm, activation=activation)
        self.cell = nn.GRUCell(hidden, deter)
        for gates in self.cell.weight_ih.chunk(3):
            init_dense_weight(gates, hidden, deter, norm)
        for gates in self.cell.weight_hh.chunk(3):
            nn.init.orthogonal_(gates)

    def project_action(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.input.project_input(1, action)

    def forward(self, deter: Tensor, stoch: Tensor, projected_action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        x = self.input.norm_and_activate(self.input.project_input(0, stoch) + projected_action)
        next_deter: Tensor = self.cell(x, deter)
        return next_deter


class LayerNormGRUCell(RecurrentCell):
    """Dense layer followed by a GRU with LayerNorm over its gates and a small initial update gate (DreamerV2).

    Args:
        deter, stoch, action, hidden, norm, activation: See ``PlaNetGRUCell``.
    """

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int, norm: NormType, activation: ActivationType
    ) -> None:
        super().__init__()
        self.input = MultiInputDense([stoch, action], width=hidden, norm=norm, activation=activation)
        self.gates = OneDNNLinear(hidden + deter, 3 * deter, bias=False)
        init_dense_weight(self.gates.weight, hidden + deter, 3 * deter, norm)
        self.norm = nn.LayerNorm(3 * deter, eps=1e-3)

    def project_action(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.input.project_input(1, action)

    def forward(self, deter: Tensor, stoch: Tensor, projected_action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        x = self.input.norm_and_activate(self.input.project_input(0, stoch) + projected_action)
        return gru_update(deter, *self.norm(self.gates(torch.cat((x, deter), dim=-1))).chunk(3, dim=-1))


class BlockDiagonalGRUCell(RecurrentCell):
    """GRU whose large weight matrices are block-diagonal (DreamerV3, Nature 640, 2025, methods).

    Deterministic state, stochastic state and action pass through one dense layer each; every block of the state
    receives all three and itself.

    Args:
        deter, stoch, action, hidden, norm, activation: See ``PlaNetGRUCell``.
        blocks: Number of blocks of the deterministic state.

    Raises:
        ValueError: ``blocks`` does not divide ``deter``.
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
        block_size = deter // blocks
        self.deter_projection = MultiInputDense([deter], width=hidden, norm=norm, activation=activation)
        self.stoch_projection = MultiInputDense([stoch], width=hidden, norm=norm, activation=activation)
        self.action_projection = MultiInputDense([action], width=hidden, norm=norm, activation=activation)
        self.block_recurrence = BlockLinear(deter, deter, blocks)
        self.mixing_layer = MultiInputDense([2 * hidden, hidden], width=deter, norm=norm, activation=activation)
        self.gates = BlockLinear(deter, deter, blocks, num_outputs=3)
        mixing = self.mixing_layer.input_projections
        for weight in (mixing[0].weight, mixing[1].weight, self.block_recurrence.weight):
            assert isinstance(weight, Tensor)
            init_dense_weight(weight, block_size + 3 * hidden, block_size, norm)
        init_dense_weight(self.gates.weight, block_size, 3 * block_size, norm)

    def project_action(self, action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        return self.mixing_layer.project_input(1, self.action_projection(action))

    def forward(self, deter: Tensor, stoch: Tensor, projected_action: Tensor) -> Tensor:
        """See ``RecurrentCell``."""
        state = torch.cat((self.deter_projection(deter), self.stoch_projection(stoch)), dim=-1)
        x = self.mixing_layer.project_input(0, state) + self.block_recurrence(deter)[:, 0] + projected_action
        return gru_update(deter, *self.gates(self.mixing_layer.norm_and_activate(x)).unbind(1))


def gru_update(deter: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """Return the next state [b, d] from the gates before their nonlinearity, [b, d] each.

    The bias of -1 on the update gate makes the cell keep most of its state at initialization.
    """
    new = torch.tanh(reset.sigmoid() * candidate)
    return torch.lerp(deter, new, (update - 1).sigmoid())
