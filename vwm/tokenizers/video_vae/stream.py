"""Layers of published networks that continue a clip from features that their caller holds.

diffusers' video autoencoders process a whole clip, or keep features of past frames inside themselves. Here the few
layers that mix frames get a second forward, which takes what it needs of the past from a ``Stream`` and leaves there
what the next chunk needs. All other code of the networks runs as it is. A whole clip is a stream of one chunk.

Legend: b batch, c channels, t time, h w space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Stream:
    """What the layers of one network keep from one chunk to the next, in the order in which they run.

    Args:
        past: tensors with the batch first, which ``kept`` of the chunk before held; none before the first chunk.
        latents: number of latents of this chunk, for layers that normalize over the frames of a latent.

    Attributes:
        is_first: whether this is the first chunk of the clip, whose first latent holds one frame.
        kept: what the next chunk takes as ``past``.
    """

    def __init__(self, past: tuple[Tensor, ...] = (), latents: int | None = None) -> None:
        self.is_first = not past
        self.latents = latents
        self.kept: list[Tensor] = []
        self._past = past

    def take(self) -> Tensor | None:
        """Return what the layer that runs now kept in the last chunk; None in the first one. Call ``keep`` after it."""
        return None if self.is_first else self._past[len(self.kept)]

    def keep(self, features: Tensor) -> None:
        """Keep a copy of features for the layer's next chunk."""
        self.kept.append(features.clone(memory_format=torch.contiguous_format))

    def with_past(
        self, x: Tensor, keep: int, initial: int | None = None, fill: Literal["zeros", "first"] = "zeros"
    ) -> Tensor:
        """Put the frames that precede a chunk before it, [b, c, t, h, w] -> [b, c, p + t, h, w], and keep its last.

        Without any, nothing is kept.

        Args:
            x: the frames of this chunk.
            keep: number of frames to keep for the next chunk, and p from the second chunk on.
            initial: p of the first chunk, by default ``keep``.
            fill: what precedes the first chunk: zeros, or copies of its first frame.
        """
        if not keep and not initial:
            return x
        past = self.take()
        if past is None:
            past = x.new_zeros(1).expand(x.shape[0], x.shape[1], 1, *x.shape[3:]) if fill == "zeros" else x[:, :, :1]
            past = past.expand(-1, -1, keep if initial is None else initial, -1, -1)
        x = torch.cat((past.to(x.dtype), x), dim=2)
        self.keep(x[:, :, x.shape[2] - keep :])
        return x

    def with_all_past(self, x: Tensor) -> Tensor:
        """Put all frames since the first one before a chunk, [b, c, t, h, w] -> [b, c, p + t, h, w], and keep them."""
        past = self.take()
        x = x if past is None else torch.cat((past.to(x.dtype), x), dim=2)
        self.keep(x)
        return x


_current: ContextVar[Stream | None] = ContextVar("stream", default=None)


@contextmanager
def streaming(past: tuple[Tensor, ...], latents: int | None = None) -> Iterator[Stream]:
    """Let the streaming layers that run inside continue from ``past``, and keep in the stream what follows needs."""
    stream = Stream(past, latents)
    token = _current.set(stream)
    try:
        yield stream
    finally:
        _current.reset(token)


class StreamingLayer:
    """Mixin for modules that mix frames: inside ``streaming`` it runs ``step``, outside the original ``forward``."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``step`` on the current stream, if there is one."""
        stream = _current.get()
        if stream is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]  # of the layer into which this is mixed
        return self.step(stream, *args, **kwargs)

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Process the next frames, [b, c, t, h, w]."""
        raise NotImplementedError


class PlainUpsample(StreamingLayer):
    """``nn.Upsample`` in the type of its input: diffusers' own goes through float32, which rounds float64."""

    def step(self, stream: Stream, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Enlarge frames, [b t, c, h, w]."""
        return nn.Upsample.forward(self, x)  # type: ignore[arg-type]  # mixed into one


def make_streaming(network: nn.Module, layers: Mapping[type[nn.Module], type[StreamingLayer]]) -> None:
    """Give the layers of a network their streaming forward, in place; names and weights stay as they are.

    Args:
        network: contains the layers.
        layers: the subclass with a ``step`` that replaces each class.
    """
    for layer in network.modules():
        replacement = layers.get(type(layer))
        if replacement is not None:
            layer.__class__ = replacement  # type: ignore[assignment]  # a subclass of both


def convolve(conv: nn.Module, x: Tensor, *padding: int, mode: str = "constant") -> Tensor:
    """Apply a ``nn.Conv3d`` without the forward of its subclass, after padding as ``F.pad`` takes it."""
    return nn.Conv3d.forward(conv, F.pad(x, padding, mode=mode) if any(padding) else x)  # type: ignore[arg-type]


def attend_to_all_frames(stream: Stream, query: Tensor, key: Tensor, value: Tensor, heads: int = 1) -> Tensor:
    """Attend to all positions of all frames since the first one up to one's own, [b, c, t, h, w] -> the same shape."""
    frames, height = query.shape[2:4]
    q, k, v = (
        rearrange(x, "b c t h w -> b (t h w) c")
        for x in (query, stream.with_all_past(key), stream.with_all_past(value))
    )
    mixed = attend_to_past(q, k, v, frames, heads)
    return rearrange(mixed, "b (t h w) c -> b c t h w", t=frames, h=height)


def attend_to_past(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int = 1) -> Tensor:
    """Attend to the tokens of all frames up to one's own, [b, t n, c] -> [b, t n, c].

    Args:
        query: of the last frames, t of n tokens each.
        key, value: of all frames, [b, (p + t) n, c].
        frames: t.
        heads: number of heads.
    """
    tokens = query.shape[1] // frames
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    past = key.shape[1] // tokens - frames
    if tokens == 1:
        mask = torch.ones(frames, past + frames, dtype=torch.bool, device=query.device).tril(past)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if frames > 1 else None)
    else:  # frame by frame without a mask, which would be large
        visible = [(past + i + 1) * tokens for i in range(frames)]
        parts = zip(q.split(tokens, dim=2), visible, strict=True)
        mixed = torch.cat([F.scaled_dot_product_attention(x, k[:, :, :n], v[:, :, :n]) for x, n in parts], dim=2)
    return mixed.transpose(1, 2).flatten(2)
