"""An ensemble of Q functions that is computed at once, or in part (TD-MPC2, arXiv 2310.16828, section 3.1).

Legend: m members, c members asked for, n rows, d width of a latent, a dimensions of an action.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.models.tdmpc2.layers import TDMPC2_INIT_STD
from vwm.nn.linear import onednn_linear
from vwm.nn.mish import mish
from vwm.nn.two_hot import SymlogTwoHot


class QEnsemble(ModelMixin, ConfigMixin):
    """What actions are worth, as distributions over bins; m networks of two hidden layers.

    Args:
        latent: d.
        action_dims: a.
        members: m, 2 or more.
        width: of the hidden layers.
        dropout: of the first layer, before its norm.
        bins, reach: of the value, in symlog space.

    Raises:
        ValueError: fewer than two members.
    """

    @register_to_config
    def __init__(
        self,
        latent: int = 512,
        action_dims: int = 1,
        members: int = 5,
        width: int = 512,
        dropout: float = 0.01,
        bins: int = 101,
        reach: float = 10.0,
    ) -> None:
        super().__init__()
        if members < 2:
            raise ValueError(f"an ensemble needs 2 members or more, since targets take the less of two; got {members}")
        self.members, self.dropout = members, dropout
        self.first = EnsembleLinear(members, latent + action_dims, width, normed=True)
        self.second = EnsembleLinear(members, width, width, normed=True)
        self.output = EnsembleLinear(members, width, bins, normed=False)
        nn.init.zeros_(self.output.weight)
        self.two_hot = SymlogTwoHot(bins, reach)

    def forward(
        self, latent: Tensor, action: Tensor, chosen: Tensor | None = None, frozen: bool = False, drop: bool = False
    ) -> Tensor:
        """The distributions.

        Args:
            latent: [..., d].
            action: [..., a].
            chosen: int64 [c], the members that are asked; None for all.
            frozen: gradients flow to the latent and action alone, not to the weights.
            drop: with dropout, drawn from torch's generator for each member.

        Returns:
            Logits [c, ..., bins].
        """
        x = torch.cat((latent, action), dim=-1)
        rows = x.flatten(0, -2)[None]
        rows = self.first(rows, chosen, frozen)
        if drop:
            rows = F.dropout(rows, self.dropout)
        rows = self.second(self.first.activate(rows, chosen, frozen), chosen, frozen)
        logits: Tensor = self.output(self.second.activate(rows, chosen, frozen), chosen, frozen)
        return logits.unflatten(1, x.shape[:-1])

    def value(
        self, latent: Tensor, action: Tensor, chosen: Tensor | None = None, frozen: bool = False, drop: bool = False
    ) -> Tensor:
        """The values expected, [c, ...]; see ``forward``."""
        return self.two_hot.mean(self(latent, action, chosen, frozen, drop))

    def draw_pair(self, *shape: int) -> Tensor:
        """Two different members, int64 [*shape, 2], each pair alike likely, from torch's generator."""
        order = torch.rand(*shape, self.members, device=self.output.weight.device)
        return order.topk(2, dim=-1).indices


class EnsembleLinear(nn.Module):
    """One layer of every member.

    Args:
        members: m.
        inputs, outputs: its widths.
        normed: whether a LayerNorm and Mish follow (``activate``).
    """

    def __init__(self, members: int, inputs: int, outputs: int, normed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(members, outputs))
        self.scale = nn.Parameter(torch.ones(members, outputs)) if normed else None
        self.shift = nn.Parameter(torch.zeros(members, outputs)) if normed else None
        nn.init.trunc_normal_(self.weight, std=TDMPC2_INIT_STD)

    def forward(self, rows: Tensor, chosen: Tensor | None, frozen: bool) -> Tensor:
        """[c or 1, n, inputs] -> [c, n, outputs]."""
        weight, bias = (p.detach() if frozen else p for p in (self.weight, self.bias))
        if rows.device.type == "cpu" and rows.dtype == torch.float32:  # by oneDNN, and without a copy of the weights
            members = range(len(weight)) if chosen is None else chosen.tolist()
            inputs, weights, biases = rows.expand(len(members), -1, -1).unbind(), weight.unbind(), bias.unbind()
            return torch.stack([onednn_linear(x, weights[i], biases[i]) for x, i in zip(inputs, members, strict=True)])
        if chosen is not None:
            weight, bias = weight[chosen], bias[chosen]
        return torch.baddbmm(bias[:, None], rows.expand(len(weight), -1, -1), weight.mT)

    def activate(self, rows: Tensor, chosen: Tensor | None, frozen: bool) -> Tensor:
        """LayerNorm and Mish, [c, n, outputs] likewise."""
        assert self.scale is not None and self.shift is not None
        scale, shift = (p.detach() if frozen else p for p in (self.scale, self.shift))
        if chosen is not None:
            scale, shift = scale[chosen], shift[chosen]
        return mish(torch.addcmul(shift[:, None], F.layer_norm(rows, rows.shape[-1:]), scale[:, None]))
