"""The attentive probe: a learned query attends to frozen features, and a linear layer predicts the class.

V-JEPA 2 (arXiv 2506.09985, section 4 and appendix D.1): three layers of self-attention and one of cross-attention;
V-JEPA (arXiv 2404.08471, appendix D): cross-attention only. The names of the weights are those of the published probes.

Legend: b batch, n tokens, q queries, d width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.checks import check_positive
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.vjepa.vit_block import VIT_INIT_STD, ViTBlock, ViTMLP, init_vit_weights
from vwm.nn.linear import OneDNNLinear

PROBE_NORM_EPS = 1e-5


class CrossAttention(nn.Module):
    """Multi-head attention of queries to tokens, without an output projection.

    Args:
        width: d.
        heads: must divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_positive(width=width, heads=heads)
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads = heads
        self.q = OneDNNLinear(width, width)
        self.kv = OneDNNLinear(width, 2 * width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """[b, q, d] and [b, n, d] -> [b, q, d]."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Residual cross-attention and feed-forward, with layer norm of the tokens but not of the queries."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = ViTMLP(width, round(width * mlp_ratio))

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """[b, q, d] and [b, n, d] -> [b, q, d]."""
        queries = queries + self.xattn(queries, self.norm1(x))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Pool tokens to a fixed number of vectors by attention.

    Args:
        width: d.
        heads: number of attention heads.
        depth: number of layers; the last one is cross-attention.
        queries: q, number of vectors.
        mlp_ratio: ratio of the hidden width of feed-forwards to d.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: ``depth`` is below 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 4,
        queries: int = 1,
        mlp_ratio: float = 4.0,
        norm_eps: float = PROBE_NORM_EPS,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1, the layer of cross-attention")
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio, norm_eps=norm_eps) for _ in range(depth - 1))
        self.cross_attention_block = CrossAttentionBlock(width, heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        init_vit_weights(self, self.blocks)
        with torch.no_grad():
            nn.init.trunc_normal_(self.query_tokens, std=VIT_INIT_STD)
            self.cross_attention_block.mlp.fc2.weight.div_((2 * depth) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, d] -> [b, q, d]."""
        for block in self.blocks:
            x = block(x)
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)


class AttentiveClassifier(ModelMixin, ConfigMixin):
    """Attentive probe: an ``AttentivePooler`` with one query, and a linear layer.

    Args:
        width: d, width of the features.
        classes: k.
        heads: number of attention heads.
        depth: number of layers; the last one is cross-attention. 4 in V-JEPA 2, 1 in V-JEPA.
        mlp_ratio: ratio of the hidden width of feed-forwards to d.
        norm_eps: epsilon of the layer norms; 1e-5 in the official probes, 1e-6 in those of Hugging Face.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 192,
        classes: int = 2,
        heads: int = 16,
        depth: int = 4,
        mlp_ratio: float = 4.0,
        norm_eps: float = PROBE_NORM_EPS,
    ) -> None:
        super().__init__()
        self.pooler = AttentivePooler(
            width=width, heads=heads, depth=depth, queries=1, mlp_ratio=mlp_ratio, norm_eps=norm_eps
        )
        self.linear = OneDNNLinear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=VIT_INIT_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[b, n, d] -> logits [b, k]."""
        return self.linear(self.pooler(features)[:, 0])
