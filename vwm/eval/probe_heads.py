"""Trained probes over frozen tokens, many copies of each as one batched module for a sweep of settings.

Every weight has the s copies first, and all copies begin alike.

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
"""Of an attentive head: narrow tokens get no weaker a head than wide ones, or pixels would be judged more kindly."""
HEAD_WIDTH, MAX_ATTENTION_HEADS = 32, 16

ProbeHeadType = Literal["attentive", "linear"]


class ProbeHeads(nn.Module):
    """s copies of a probe."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b, n, d], the same for all copies -> [s, b, o]."""


class LinearProbeHeads(ProbeHeads):
    """A linear layer on the tokens' mean.

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
    """Cross-attention from a learned query, a feed-forward, and a linear layer.

    One block is V-JEPA's probe (arXiv 2404.08471, section 4); with more, the blocks before the last are self-attention
    among the tokens, three of them in V-JEPA 2's (arXiv 2506.09985, section 4).

    Every token has a learned position, so that pixels, which do not know their place, are not judged for that. It
    starts as loud as the tokens: from the usual 0.02 a head takes hundreds of steps to look at a place at all. There is
    no norm before the first block: tokens come standardised by channel, and a norm would take away how bright a patch
    is.

    There is one query a head, so the keys' projection is taken to the query, and the values' projection to the mean
    that attention makes: the same function, without any work a token that grows with the square of the width. That is
    what lets a sweep of twenty heads cost little more than one.

    Args:
        copies: s.
        tokens, width, outputs: n, d, o.
        blocks: of attention, the last one across.
    """

    def __init__(self, copies: int, tokens: int, width: int, outputs: int, blocks: int = 1) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks={blocks} must be at least 1, the one of cross-attention")
        heads = min(MAX_ATTENTION_HEADS, max(width, MIN_HEAD_WIDTH) // HEAD_WIDTH)
        inner = max(width, MIN_HEAD_WIDTH) // heads * heads
        self.embed = BatchedLinear(copies, width, inner) if blocks > 1 else None
        self.blocks = nn.ModuleList(BatchedTransformerBlock(copies, inner, heads) for _ in range(blocks - 1))
        seen, c = (inner if blocks > 1 else width), inner // heads
        self.places = nn.Parameter(repeat_weight(copies, torch.randn(tokens, seen)))
        self.query = nn.Parameter(repeat_weight(copies, torch.randn(heads, c)))
        self.keys = nn.Parameter(repeat_weight(copies, torch.randn(heads, c, seen) * seen**-0.5))
        self.values = nn.Parameter(repeat_weight(copies, torch.randn(heads, seen, c) * seen**-0.5))
        self.start = nn.Parameter(repeat_weight(copies, torch.randn(inner) * 0.02))
        self.out = BatchedLinear(copies, inner, inner)
        self.norm = BatchedLayerNorm(copies, inner)
        self.mlp = nn.Sequential(
            BatchedLinear(copies, inner, 4 * inner), nn.GELU(), BatchedLinear(copies, 4 * inner, inner)
        )
        self.last_norm = BatchedLayerNorm(copies, inner)
        self.linear = BatchedLinear(copies, inner, outputs, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y = self.start[:, None] + self.out(self._read(x) if self.embed is None else self._look(self.embed, x))
        y = y + self.mlp(self.norm(y))
        return self.linear(self.last_norm(y))

    def _queries(self) -> Tensor:
        """What each head looks for, with the keys' projection: [s, h, d]."""
        return torch.einsum("shc,shcd->shd", self.query, self.keys) * self.query.shape[-1] ** -0.5

    def _read(self, x: Tensor) -> Tensor:
        """Attention to tokens that all copies share: [b, n, d] -> [s, b, w].

        Positions are taken in apart from the tokens, which would else be copied for every copy of the head.
        """
        queries = self._queries()
        s, h, _ = queries.shape
        logits = (x @ queries.flatten(0, 1).T).transpose(1, 2).unflatten(1, (s, h))
        weights = (logits + queries @ self.places.transpose(1, 2)).softmax(dim=-1)  # [b, s, h, n]
        found = (weights.flatten(1, 2) @ x).unflatten(1, (s, h)).transpose(0, 1)
        placed = weights.transpose(0, 1).flatten(1, 2) @ self.places
        return self._project_values(found + placed.unflatten(1, (len(x), h)))

    def _look(self, embed: BatchedLinear, x: Tensor) -> Tensor:
        """The blocks of self-attention, and attention to what they make: [b, n, d] -> [s, b, w]."""
        b, n, _ = x.shape
        y = embed(x.flatten(0, 1).expand(embed.copies, -1, -1)).unflatten(1, (b, n)) + self.places[:, None]
        for block in self.blocks:
            y = block(y)
        weights = torch.einsum("shd,sbnd->sbhn", self._queries(), y).softmax(dim=-1)
        return self._project_values(weights @ y)

    def _project_values(self, found: Tensor) -> Tensor:
        """[s, b, h, d] -> [s, b, w]."""
        return torch.einsum("sbhd,shdc->sbhc", found, self.values).flatten(2)


class BatchedTransformerBlock(nn.Module):
    """s blocks of self-attention and feed-forward, both residual."""

    def __init__(self, copies: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = BatchedLayerNorm(copies, width), BatchedLayerNorm(copies, width)
        self.qkv, self.out = BatchedLinear(copies, width, 3 * width), BatchedLinear(copies, width, width)
        self.mlp = nn.Sequential(
            BatchedLinear(copies, width, 4 * width), nn.GELU(), BatchedLinear(copies, 4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, n, w] -> [s, b, n, w]."""
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
    """The same weight s times: [...] -> [s, ...]."""
    return weight.expand(copies, *weight.shape).clone()


def make_probe_heads(
    probe: ProbeHeadType, copies: int, tokens: int, width: int, outputs: int, blocks: int, seed: int
) -> ProbeHeads:
    """s copies of a probe with the weights of a seed; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if probe == "linear":
            return LinearProbeHeads(copies, tokens, width, outputs)
        return AttentiveProbeHeads(copies, tokens, width, outputs, blocks)
