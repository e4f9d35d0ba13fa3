"""The transformer of the tokenizer and the dynamics: attention in space and, causally, in time, in turn.

There are two published generations. The first adds sines and cosines of the positions to the tokens. The second turns
queries and keys by their positions and normalizes them to a learned length; its turns pair neighboring channels whose
angles differ, so that positions count from the beginning of the window.

The names of the weights are the published ones. Legend: b batch, t time, s past frames, n tokens of a frame, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_BASE = 10_000.0
NORM_EPSILON = 1e-6
MAX_LOGIT_SCALE = 100.0


class PastKeys(NamedTuple):
    """Keys and values of past frames in one layer, each [b, n, heads, s, d / heads]."""

    keys: Tensor
    values: Tensor


class TimeAttention(NamedTuple):
    """How frames attend to frames.

    Attributes:
        positions: int64 [b, t], of the frames in their window.
        mask: bool [b, 1, 1, t, s + t], True where attended; see ``known_causal_mask``.
    """

    positions: Tensor
    mask: Tensor


class ScaledRMSNorm(nn.Module):
    """Divide by the root mean square and multiply by a weight per channel, [..., d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * (self.scale / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + NORM_EPSILON))


class GatedPerceptron(nn.Module):
    """A hidden layer with SwiGLU, whose gate is the second half: [..., d] -> [..., d]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(width, 2 * hidden)
        self.fc_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        value, gate = self.fc_in(x).chunk(2, dim=-1)
        return self.fc_out(value * F.silu(gate))


class PublishedAttention(nn.Module):
    """Attention along one axis: [..., l, d] -> [..., l, d].

    Args:
        width: d.
        heads: number of heads.
        rotary: turn and normalize queries and keys, as the second generation does.
    """

    def __init__(self, width: int, heads: int, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        initial = math.log(math.sqrt(width // heads))
        self.log_qk_scale = nn.Parameter(torch.full((heads,), initial)) if rotary else None

    def forward(
        self, x: Tensor, mask: Tensor | None, positions: Tensor, past: PastKeys | None = None
    ) -> tuple[Tensor, PastKeys]:
        """Attend.

        Args:
            x: [..., l, d].
            mask: bool, broadcastable to [..., heads, l, k + l].
            positions: int64 [l] or [b, l], of the tokens.
            past: keys and values of k tokens before them.

        Returns:
            [..., l, d], and keys and values of these tokens.
        """
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.qkv(x).chunk(3, dim=-1))
        scale = None
        if self.log_qk_scale is not None:
            cos, sin = _turns(positions, q.shape[-1], q.dtype)
            q, k = (F.normalize(_turn(part, cos, sin), dim=-1, eps=NORM_EPSILON) for part in (q, k))
            q = q * self.log_qk_scale.exp().clamp(0.0, MAX_LOGIT_SCALE).to(q.dtype)[:, None, None]
            scale = 1.0
        own = PastKeys(k, v)
        if past is not None:
            k, v = torch.cat((past.keys, k), dim=-2), torch.cat((past.values, v), dim=-2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return self.out(attended.transpose(-2, -3).flatten(-2)), own


class BlockCausalLayer(nn.Module):
    """Attention in space, in time in some layers, and a perceptron.

    Args:
        width: d.
        heads: of the attention.
        hidden: of the perceptron.
        rotary: see ``PublishedAttention``.
        in_time: whether there is attention in time.
        time_tokens: the first tokens of a frame alone attend in time, and the rest is normalized and added in its
            place; None for all.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, rotary: bool, in_time: bool, time_tokens: int | None
    ) -> None:
        super().__init__()
        self.time_tokens = time_tokens
        self.norm1 = ScaledRMSNorm(width)
        self.space = nn.ModuleDict({"attn": PublishedAttention(width, heads, rotary)})
        self.norm2 = ScaledRMSNorm(width) if in_time else None
        self.time = nn.ModuleDict({"attn": PublishedAttention(width, heads, rotary)}) if in_time else None
        self.norm3 = ScaledRMSNorm(width)
        self.mlp = GatedPerceptron(width, hidden)

    def forward(
        self, x: Tensor, space_mask: Tensor, time: TimeAttention, past: PastKeys | None
    ) -> tuple[Tensor, PastKeys | None]:
        """Process frames [b, t, n, d]; return them, and keys and values in time, if any."""
        places = torch.arange(x.shape[2], device=x.device)
        x = x + self.space["attn"](self.norm1(x), space_mask, places)[0]
        keys = None
        if self.time is not None and self.norm2 is not None:
            normed = self.norm2(x)
            moved = normed[:, :, : self.time_tokens].transpose(1, 2)
            attended, keys = self.time["attn"](moved, time.mask, time.positions, past)
            rest = [] if self.time_tokens is None else [normed[:, :, self.time_tokens :]]
            x = x + torch.cat((attended.transpose(1, 2), *rest), dim=2)
        return x + self.mlp(self.norm3(x)), keys


class BlockCausalTransformer(nn.Module):
    """Layers of attention in space, every ``time_every``-th of them in time, too.

    Args:
        width: d.
        heads: of the attention.
        depth: number of layers.
        hidden: of the perceptrons.
        time_every: which layers attend in time.
        rotary: see ``PublishedAttention``; otherwise ``add_positions`` is called before.
        time_tokens: see ``BlockCausalLayer``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        hidden: int,
        time_every: int,
        rotary: bool,
        time_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width={width} must be heads={heads} times an even number")
        self.layers = nn.ModuleList(
            BlockCausalLayer(width, heads, hidden, rotary, (layer + 1) % time_every == 0, time_tokens)
            for layer in range(depth)
        )

    def forward(
        self, x: Tensor, space_mask: Tensor, time: TimeAttention, past: list[PastKeys | None] | None = None
    ) -> tuple[Tensor, list[PastKeys | None]]:
        """Process frames.

        Args:
            x: [b, t, n, d].
            space_mask: bool [n, n], True where a token attends.
            time: see there.
            past: keys and values of s frames before them, of each layer; None for s = 0.

        Returns:
            [b, t, n, d], and keys and values of these frames.
        """
        keys = []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, space_mask, time, None if past is None else past[number])
            keys.append(own)
        return x, keys


def add_positions(tokens: Tensor, positions: Tensor, scaled: bool) -> Tensor:
    """Add sines and cosines of frames and places to tokens [b, t, n, d].

    Args:
        tokens: see there.
        positions: int64 [b, t], of the frames in their window.
        scaled: divide by the root of d.
    """
    width = tokens.shape[-1]
    places = torch.arange(tokens.shape[2], device=tokens.device)
    added = _sines(positions, width)[:, :, None] + _sines(places, width)
    return tokens + (added * (1 / math.sqrt(width)) if scaled else added).to(tokens.dtype)


def _sines(positions: Tensor, width: int) -> Tensor:
    """[...] -> float32 [..., width], sines and cosines in turn."""
    channel = torch.arange(width, device=positions.device)
    frequencies = torch.exp(-(2.0 * (channel // 2).float()) / width * math.log(POSITION_BASE))
    angles = positions[..., None].float() * frequencies
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos())


def _turns(positions: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which queries and keys turn: [l] -> [l, c], and [b, l] -> [b, 1, 1, l, c]."""
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device) / channels
    angles = (positions[..., None].float() * (1.0 / POSITION_BASE**exponents)).repeat(*[1] * positions.ndim, 2)
    if positions.ndim == 2:
        angles = angles[:, None, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack((-second, first), dim=-1).flatten(-2) * sin
