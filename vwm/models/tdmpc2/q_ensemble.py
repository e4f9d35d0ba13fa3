"""Ensemble of Q functions, evaluated as one batched network (TD-MPC2, arXiv 2310.16828, section 3.1).

Dimensions: m members, c evaluated members, n batch entries, d latent size, a action dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.tdmpc2.layers import TDMPC2_INIT_STD
from vwm.nn.linear import onednn_linear
from vwm.nn.mish import mish
from vwm.nn.two_hot import SymlogTwoHot


class QEnsemble(ModelMixin, ConfigMixin):
    """m Q networks of two hidden layers that predict distributions over bins.

    Args:
        latent_size: d.
        action_dims: a.
        num_members: m, at least 2.
        width: Width of the hidden layers.
        dropout: Dropout probability in the first layer, before its normalization.
        num_bins: Number of bins of the value distribution.
        symlog_limit: The bins span [-symlog_limit, symlog_limit] in symlog space.

    Raises:
        ValueError: Fewer than two members.
    """

    @register_to_config
    def __init__(
        self,
        latent_size: int = 512,
        action_dims: int = 1,
        num_members: int = 5,
        width: int = 512,
        dropout: float = 0.01,
        num_bins: int = 101,
        symlog_limit: float = 10.0,
    ) -> None:
        super().__init__()
        if num_members < 2:
            raise ValueError(
                f"num_members={num_members} must be at least 2, since targets take the minimum of two Q values"
            )
        self.num_members = num_members
        self.dropout = dropout
        self.first = EnsembleLinear(num_members, latent_size + action_dims, width, use_norm=True)
        self.second = EnsembleLinear(num_members, width, width, use_norm=True)
        self.output = EnsembleLinear(num_members, width, num_bins, use_norm=False)
        nn.init.zeros_(self.output.weight)
        self.two_hot = SymlogTwoHot(num_bins, symlog_limit)

    def forward(
        self,
        latent: Tensor,
        action: Tensor,
        member_indices: Tensor | None = None,
        detach_weights: bool = False,
        use_dropout: bool = False,
    ) -> Tensor:
        """Return the logits of the value distributions.

        Args:
            latent: [..., d].
            action: [..., a].
            member_indices: int64 [c], the members to evaluate; None for all.
            detach_weights: Whether gradients flow only to latent and action, not to the weights.
            use_dropout: Whether to apply dropout, drawn from torch's generator for each member.

        Returns:
            Logits [c, ..., num_bins].
        """
        x = torch.cat((latent, action), dim=-1)
        selection = (member_indices, detach_weights)
        hidden = self.first(x.flatten(0, -2)[None], *selection)
        if use_dropout:
            hidden = F.dropout(hidden, self.dropout)
        hidden = self.second(self.first.norm_and_activate(hidden, *selection), *selection)
        logits: Tensor = self.output(self.second.norm_and_activate(hidden, *selection), *selection)
        return logits.unflatten(1, x.shape[:-1])

    def values(
        self,
        latent: Tensor,
        action: Tensor,
        member_indices: Tensor | None = None,
        detach_weights: bool = False,
        use_dropout: bool = False,
    ) -> Tensor:
        """Return the expected values [c, ...]; see ``forward``."""
        return self.two_hot.mean(self(latent, action, member_indices, detach_weights, use_dropout))

    def sample_member_pair(self, *shape: int) -> Tensor:
        """Draw two different members uniformly, int64 [*shape, 2], from torch's generator."""
        order = torch.rand(*shape, self.num_members, device=self.output.weight.device)
        return order.topk(2, dim=-1).indices


class EnsembleLinear(nn.Module):
    """One linear layer per member, with the parameters of the LayerNorm that follows.

    Args:
        num_members: m.
        input_size: Size of the inputs.
        output_size: Size of the outputs.
        use_norm: Whether LayerNorm and Mish follow (``norm_and_activate``).
    """

    def __init__(self, num_members: int, input_size: int, output_size: int, use_norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, output_size, input_size))
        self.bias = nn.Parameter(torch.zeros(num_members, output_size))
        self.norm_weight = nn.Parameter(torch.ones(num_members, output_size)) if use_norm else None
        self.norm_bias = nn.Parameter(torch.zeros(num_members, output_size)) if use_norm else None
        nn.init.trunc_normal_(self.weight, std=TDMPC2_INIT_STD)

    def forward(self, inputs: Tensor, member_indices: Tensor | None, detach_weights: bool) -> Tensor:
        """Apply the linear layers: [c or 1, n, input_size] -> [c, n, output_size]."""
        weight, bias = (p.detach() if detach_weights else p for p in (self.weight, self.bias))
        if inputs.device.type == "cpu" and inputs.dtype == torch.float32:  # oneDNN does not copy the weights
            members = range(len(weight)) if member_indices is None else member_indices.tolist()
            per_member = zip(inputs.expand(len(members), -1, -1).unbind(), members, strict=True)
            weights = weight.unbind()
            biases = bias.unbind()
            return torch.stack([onednn_linear(x, weights[i], biases[i]) for x, i in per_member])
        if member_indices is not None:
            weight = weight[member_indices]
            bias = bias[member_indices]
        return torch.baddbmm(bias[:, None], inputs.expand(len(weight), -1, -1), weight.mT)

    def norm_and_activate(self, x: Tensor, member_indices: Tensor | None, detach_weights: bool) -> Tensor:
        """Apply LayerNorm and Mish to outputs [c, n, output_size]."""
        assert self.norm_weight is not None and self.norm_bias is not None
        weight, bias = (p.detach() if detach_weights else p for p in (self.norm_weight, self.norm_bias))
        if member_indices is not None:
            weight = weight[member_indices]
            bias = bias[member_indices]
        return mish(torch.addcmul(bias[:, None], F.layer_norm(x, x.shape[-1:]), weight[:, None]))
