"""Trained probes on frozen tokens: one batched module holds many copies of a probe, for a sweep of settings.

The first dimension of every weight is the s copies, which all start equal.

Legend: s copies, b batch, n tokens, d their width, w width of the head, h attention heads, c = w / h channels of one,
o outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_HEAD_WIDTH = 512
"""Smallest width of an attentive head, so that features with narrow tokens have no weaker head than others."""
HEAD_WIDTH, MAX_ATTENTION_HEADS = 32, 16

ProbeHeadType = Literal["attentive", "linear"]


class ProbeHeads(nn.Module):
    """s copies of a probe."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [b, n, d], the same for all copies, to [s, b, o]."""


class LinearProbeHeads(ProbeHeads):
    """A linear layer on the mean of the tokens.

    Args:
        copies: s.
        tokens, width, outputs: n, d, o.
    """

    def __init__(self, copies: int, tokens: int, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = BatchedLinear(copies, width, outputs, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=1).expand(self.linear.copies, -1, -1))


class AttentiveProbeHeads(ProbeHeads):
    """Cross-attention with a learned query, a feed-forward layer, and a linear layer.

    One block is V-JEPA's probe (arXiv 2404.08471, section 4); with more, the blocks before the last are self-attention
    among the tokens, three of them in V-JEPA 2's (arXiv 2506.09985, section 4).

    Every token has a learned position embedding, so that pixels, which carry no position, have no disadvantage. Its
    standard deviation is 1, like that of the tokens: with the usual 0.02 it takes hundreds of steps until attention
    depends on positions. There is no norm before the first block: tokens are standardized by channel, and a norm would
    remove the brightness of a patch.

    There is one query per head, so the key projection is applied to the query, and the value projection to the weighted
    mean: the same function without work per token that grows with the square of the width. That makes a sweep of twenty
    heads cost little more than one head.

    Args:
        copies: s.
        tokens, width, outputs: n, d, o.
        blocks: attention blocks; the last one is cross-attention.

    Raises:
        ValueError: ``blocks`` is below 1.
    """

    def __init__(self, copies: int, tokens: int, width: int, outputs: int, blocks: int = 1) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1, the cross-attention block")
        heads = min(MAX_ATTENTION_HEADS, max(width, MIN_HEAD_WIDTH) // HEAD_WIDTH)
        inner = max(width, MIN_HEAD_WIDTH) // heads * heads
        self.embed = BatchedLinear(copies, width, inner) if blocks > 1 else None
        self.blocks = nn.ModuleList(BatchedTransformerBlock(copies, inner, heads) for _ in range(blocks - 1))
        d = inner if blocks > 1 else width  # width of the tokens that the query attends to
        c = inner // heads
        self.position_embedding = nn.Parameter(repeat_weight(copies, torch.randn(tokens, d)))
        self.query = nn.Parameter(repeat_weight(copies, torch.randn(heads, c)))
        self.keys = nn.Parameter(repeat_weight(copies, torch.randn(heads, c, d) * d**-0.5))
        self.values = nn.Parameter(repeat_weight(copies, torch.randn(heads, d, c) * d**-0.5))
        self.initial_output = nn.Parameter(repeat_weight(copies, torch.randn(inner) * 0.02))
        self.out = BatchedLinear(copies, inner, inner)
        self.norm = BatchedLayerNorm(copies, inner)
        self.mlp = nn.Sequential(
            BatchedLinear(copies, inner, 4 * inner), nn.GELU(), BatchedLinear(copies, 4 * inner, inner)
        )
        self.last_norm = BatchedLayerNorm(copies, inner)
        self.linear = BatchedLinear(copies, inner, outputs, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        attended = self._attend_to_tokens(x) if self.embed is None else self._attend_through_blocks(self.embed, x)
        y = self.initial_output[:, None] + self.out(attended)
        y = y + self.mlp(self.norm(y))
        return self.linear(self.last_norm(y))

    def _queries(self) -> Tensor:
        """Return the query of each head after the key projection, [s, h, d]."""
        return torch.einsum("shc,shcd->shd", self.query, self.keys) * self.query.shape[-1] ** -0.5

    def _attend_to_tokens(self, x: Tensor) -> Tensor:
        """Attend to tokens that all copies share: [b, n, d] -> [s, b, w].

        Position embeddings enter apart from the tokens; otherwise the tokens would be copied for every head.
        """
        queries = self._queries()
        s, h, _ = queries.shape
        logits = (x @ queries.flatten(0, 1).T).transpose(1, 2).unflatten(1, (s, h))
        weights = (logits + queries @ self.position_embedding.transpose(1, 2)).softmax(dim=-1)  # [b, s, h, n]
        from_tokens = (weights.flatten(1, 2) @ x).unflatten(1, (s, h)).transpose(0, 1)
        from_positions = weights.transpose(0, 1).flatten(1, 2) @ self.position_embedding
        return self._project_values(from_tokens + from_positions.unflatten(1, (len(x), h)))

    def _attend_through_blocks(self, embed: BatchedLinear, x: Tensor) -> Tensor:
        """Apply the self-attention blocks, and attend to their output: [b, n, d] -> [s, b, w]."""
        b, n, _ = x.shape
        y = embed(x.flatten(0, 1).expand(embed.copies, -1, -1)).unflatten(1, (b, n)) + self.position_embedding[:, None]
        for block in self.blocks:
            y = block(y)
        weights = torch.einsum("shd,sbnd->sbhn", self._queries(), y).softmax(dim=-1)
        return self._project_values(weights @ y)

    def _project_values(self, x: Tensor) -> Tensor:
        """Apply the value projection: [s, b, h, d] -> [s, b, w]."""
        return torch.einsum("sbhd,shdc->sbhc", x, self.values).flatten(2)


class BatchedTransformerBlock(nn.Module):
    """s pre-norm transformer blocks: self-attention and feed-forward, both residual."""

    def __init__(self, copies: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = BatchedLayerNorm(copies, width)
        self.mlp_norm = BatchedLayerNorm(copies, width)
        self.qkv = BatchedLinear(copies, width, 3 * width)
        self.out = BatchedLinear(copies, width, width)
        self.mlp = nn.Sequential(
            BatchedLinear(copies, width, 4 * width), nn.GELU(), BatchedLinear(copies, 4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [s, b, n, w] to the same shape."""
        s, b, n, _ = x.shape
        parts = self.qkv(self.norm(x.flatten(1, 2))).view(s * b, n, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(s, b * n, -1)
        x = x.flatten(1, 2) + self.out(y)
        return (x + self.mlp(self.mlp_norm(x))).view(s, b, n, -1)


class BatchedLinear(nn.Module):
    """s linear layers: [s, m, i] -> [s, m, o]."""

    def __init__(self, copies: int, inputs: int, outputs: int, std: float | None = None) -> None:
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(repeat_weight(copies, torch.randn(inputs, outputs) * (std or inputs**-0.5)))
        self.bias = nn.Parameter(torch.zeros(copies, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.weight)


class BatchedLayerNorm(nn.Module):
    """s layer norms: [s, m, w] -> [s, m, w]."""

    def __init__(self, copies: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(copies, width))
        self.bias = nn.Parameter(torch.zeros(copies, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight[:, None] + self.bias[:, None]


def repeat_weight(copies: int, weight: Tensor) -> Tensor:
    """Repeat a weight s times: [...] -> [s, ...]."""
    return weight.expand(copies, *weight.shape).clone()


def make_probe_heads(
    probe: ProbeHeadType, copies: int, tokens: int, width: int, outputs: int, blocks: int, seed: int
) -> ProbeHeads:
    """Make s copies of a probe initialized from a seed; torch's global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if probe == "linear":
            return LinearProbeHeads(copies, tokens, width, outputs)
        return AttentiveProbeHeads(copies, tokens, width, outputs, blocks)
