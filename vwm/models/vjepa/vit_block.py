"""The block of a vision transformer: pre-norm self-attention over all tokens and a feed-forward.

ViT (arXiv 2010.11929) as in V-JEPA. The names of the weights are those of the published checkpoints.

Legend: b batch, k tokens, d width, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.checks import check_positive
from vwm.models.vjepa.position_encoding import RotaryTables, apply_rotary_tables
from vwm.nn import attention_kernels
from vwm.nn.kernel_device import kernel_device
from vwm.nn.linear import OneDNNLinear

MLPType = Literal["gelu", "swiglu"]
VIT_NORM_EPS = 1e-6
VIT_INIT_STD = 0.02


class ViTSelfAttention(nn.Module):
    """Multi-head self-attention over all tokens.

    Args:
        width: d.
        heads: h; must divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_positive(width=width, heads=heads)
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads = heads
        self.qkv = OneDNNLinear(width, 3 * width)
        self.proj = OneDNNLinear(width, width)

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """[b, k, d] -> [b, k, d]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if rotary is not None:
            qk = apply_rotary_tables(qk, rotary)
        q, k = qk.unbind(2)
        y = vit_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(y.transpose(1, 2).flatten(2))


def vit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Full attention, [b, h, k, c], by torch's kernel; in bfloat16 on a CPU by the formula, which is twice as fast."""
    if kernel_device(q) == "cpu" and v.dtype == torch.bfloat16:
        return attention_kernels.dot_product_attention(q.to(v), k.to(v), v)
    return F.scaled_dot_product_attention(q, k, v)


class ViTMLP(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = OneDNNLinear(width, hidden)
        self.fc2 = OneDNNLinear(hidden, width)

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer of the residual branch."""
        return self.fc2

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLUFeedForward(nn.Module):
    """Gated feed-forward (arXiv 2002.05202) with two thirds of the hidden width, rounded up to a multiple of 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        gated_width = (2 * hidden // 3 + 7) // 8 * 8
        self.fc1 = OneDNNLinear(width, gated_width)
        self.fc2 = OneDNNLinear(width, gated_width)
        self.fc3 = OneDNNLinear(gated_width, width)

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer of the residual branch."""
        return self.fc3

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class ViTBlock(nn.Module):
    """Residual self-attention and feed-forward.

    Args:
        width: d.
        heads: h.
        mlp_ratio: ratio of the feed-forward's hidden width to d; ``SwiGLUFeedForward`` uses two thirds of it.
        mlp: ``"gelu"`` or ``"swiglu"``.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: an unknown ``mlp``.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, mlp: MLPType = "gelu", norm_eps: float = VIT_NORM_EPS
    ) -> None:
        super().__init__()
        if mlp not in get_args(MLPType):
            raise ValueError(f"mlp={mlp!r} must be one of {', '.join(get_args(MLPType))}")
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = ViTSelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = (SwiGLUFeedForward if mlp == "swiglu" else ViTMLP)(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, rotary: RotaryTables | None = None) -> Tensor:
        """[b, k, d] -> [b, k, d]."""
        x = x + self.attn(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))


@torch.no_grad()
def init_vit_weights(network: nn.Module, blocks: nn.ModuleList) -> None:
    """Initialize weights with standard deviation 0.02 and biases with 0.

    The last weights of both branches of block l = 1, 2, ... are divided by sqrt(2 l) (BEiT, arXiv 2106.08254, section
    2.3).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=VIT_INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, ViTBlock)
        for last in (block.attn.proj, block.mlp.output_layer):
            last.weight.div_((2 * number) ** 0.5)
