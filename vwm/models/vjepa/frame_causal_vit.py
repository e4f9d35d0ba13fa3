"""The transformer of the published V-JEPA 2-AC (arXiv 2506.09985, section 3): a ViT that is causal by frames.

Each token attends to all tokens of its frame and of earlier frames. The names of the weights are those of the published
checkpoints.

Legend: b batch, t time, s cached frames, n tokens per frame, d width, h heads, c channels of a head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.core.checks import check_positive
from vwm.models.vjepa.position_encoding import RotaryTables, apply_rotary_tables, rotary_tables_at
from vwm.models.vjepa.vit_block import VIT_NORM_EPS, MLPType, ViTBlock, ViTSelfAttention
from vwm.nn.attention_kernels import KeyValueCache, dot_product_attention
from vwm.nn.attention_span import AttentionSpan
from vwm.nn.space_time import TransformerState


class FrameCausalAttention(ViTSelfAttention):
    """Self-attention over the tokens of a frame and of earlier frames, with a cache."""

    def forward(  # type: ignore[override]
        self, x: Tensor, rotary: RotaryTables, mask: Tensor, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """[b, t, n, d] -> [b, t, n, d], and the keys and values of these frames.

        Args:
            x: the tokens.
            rotary: rotations of their queries and keys, [t n, c] or [b, t n, c].
            mask: bool, broadcastable to [b, h, t n, (s + t) n]: True where a token may attend.
            past: keys and values of the frames before ``x``.
        """
        t, n = x.shape[1:3]
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        q, k = apply_rotary_tables(qkv[:, :, :2], rotary).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, qkv[:, :, 2]))
        if past is not None:
            past = KeyValueCache(*(rearrange(y, "b n h s c -> b h (s n) c") for y in past))
        y = self.proj(dot_product_attention(q, k, v, mask, past=past).transpose(1, 2).flatten(2))
        seen = KeyValueCache(*(rearrange(x, "b h (t n) c -> b n h t c", n=n) for x in (k, v)))
        return y.unflatten(1, (t, n)), seen


class FrameCausalBlock(ViTBlock):
    """A ``ViTBlock`` with attention that is causal by frames."""

    def __init__(self, width: int, heads: int, mlp: MLPType) -> None:
        super().__init__(width, heads, mlp=mlp)
        self.attn = FrameCausalAttention(width, heads)

    def forward(  # type: ignore[override]
        self, x: Tensor, rotary: RotaryTables, mask: Tensor, past: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """See ``FrameCausalAttention.forward``."""
        y, seen = self.attn(self.norm1(x), rotary, mask, past)
        x = x + y
        return x + self.mlp(self.norm2(x)), seen


class FrameCausalViT(nn.Module):
    """A stack of blocks and a final norm, with the methods of a ``VideoTransformer`` that has no condition.

    Args:
        width: d.
        depth: number of layers.
        heads: h.
        window: number of frames that attention spans, including the current one.
        mlp: ``"gelu"`` or ``"swiglu"``.
        tiled_rope: see ``PositionEncoding.tiled``.
    """

    modulation = None
    """No layer is modulated."""

    def __init__(self, width: int, depth: int, heads: int, window: int, mlp: MLPType, tiled_rope: bool) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, heads=heads, window=window)
        self.span = AttentionSpan(window)
        self.heads = heads
        self.tiled_rope = tiled_rope
        self.blocks = nn.ModuleList(FrameCausalBlock(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=VIT_NORM_EPS)

    def forward(self, x: Tensor, coordinates: Tensor, condition: Tensor | None = None) -> Tensor:
        """Process a whole clip, [b, t, n, d] -> [b, t, n, d]; ``coordinates`` [n, 2]: row and column of each token."""
        positions = torch.arange(x.shape[1], device=x.device)
        rotary = self._rotary_tables(x, positions, coordinates)
        mask = _token_mask(self.span.attends(positions, positions), x.shape[2])
        for block in self.blocks:
            x, _ = block(x, rotary, mask)
        return self.norm(x)

    def init_state(self, batch: int, tokens: int) -> TransformerState:
        """The state before the first frame: empty keys and values for each layer."""
        weight = self.norm.weight
        shape = (batch, tokens, self.heads, self.span.slots, len(weight) // self.heads)
        empty = KeyValueCache(weight.new_zeros(shape), weight.new_zeros(shape))
        position = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return TransformerState(position, (empty,) * len(self.blocks))

    def step(
        self, x: Tensor, state: TransformerState, coordinates: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, TransformerState]:
        """Process the next frames, [b, t, n, d] -> [b, t, n, d]. The given state is not modified."""
        stream, blocks = self.span.stream(state.position, x.shape[1]), []
        kept = self.span.kept_slots(stream)
        rotary, mask = self._rotary_tables(x, stream.positions, coordinates), _token_mask(stream.mask[:, 0], x.shape[2])
        for block, past in zip(self.blocks, state.blocks, strict=True):
            x, new = block(x, rotary, mask, past)
            blocks.append(kept.keep(past, new))
        return self.norm(x), TransformerState(state.position + x.shape[1], tuple(blocks))

    def _rotary_tables(self, x: Tensor, positions: Tensor, coordinates: Tensor) -> RotaryTables:
        """Tables for frames at ``positions`` [t] or [b, t]."""
        n = len(coordinates)
        time = positions[..., :, None, None].expand(*positions.shape, n, 1).to(coordinates)
        space = coordinates.expand(*positions.shape, n, 2)
        whole = torch.cat((time, space), dim=-1).flatten(-3, -2)
        return rotary_tables_at(whole, x.shape[-1] // self.heads, self.tiled_rope, x.dtype)


def _token_mask(frames: Tensor, tokens: int) -> Tensor:
    """Mask of tokens from a mask of frames, [..., t, s] -> [..., t n, s n]."""
    return frames.repeat_interleave(tokens, dim=-1).repeat_interleave(tokens, dim=-2)
