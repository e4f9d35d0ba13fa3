"""A causal video autoencoder: KL (arXiv 1312.6114), or with a codebook (VQ-VAE, arXiv 1711.00937; FSQ, 2309.15505).

Causal in time on both sides, for pictures and videos. The first frame makes the first latent alone, later latents
take ``time_compression`` frames each, so that 1 + r k frames are 1 + k latents.

Two paths are added on each side. The short one is linear: each block of pixels to the latent in its place and back,
begun as a cosine transform, so that the first step of training already has a picture. The long one is a causal
convolutional network, begun at zero: it learns what the linear map leaves over.

Legend: b batch, t time, t' latents in time, h w the grid of latents, H W pixels, c latent channels, r frames a latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.causal_conv import CausalConvStack, DepthToSpaceTime, FrameBuffer, SpaceTimeToDepth, SpatialConv
from vwm.nn.cosine_transform import video_dct_basis
from vwm.nn.pixels import patch_grid
from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import Codebook, Quantizer


class VAEEncoderState(NamedTuple):
    """What the encoder remembers: waiting frames of both paths and of every level, and each block's past."""

    short: FrameBuffer
    merges: tuple[FrameBuffer, ...]
    stacks: tuple[tuple[Tensor, ...], ...]


class VAEDecoderState(NamedTuple):
    """What the decoder remembers: frames to drop at the start, on both paths and every level, and each block's past."""

    short: Tensor
    splits: tuple[Tensor, ...]
    stacks: tuple[tuple[Tensor, ...], ...]


class VAEEncoder(nn.Module):
    """Pixels to features of the latents, [b, t, H, W, 3] -> [b, t', h, w, c].

    Args:
        channels: of the latents, c.
        features: channels of what comes out, at least c; the first c are begun as the cosine transform.
        strides: (frames, side) that each level merges, pixels first.
        widths: channels of each level.
        depths: blocks of each level.
        kernel: frames that a block's kernel spans.
    """

    merges: Sequence[SpaceTimeToDepth]
    joins: Sequence[nn.Linear]
    stacks: Sequence[CausalConvStack]

    def __init__(
        self,
        channels: int,
        features: int,
        strides: list[tuple[int, int]],
        widths: list[int],
        depths: list[int],
        kernel: int,
    ) -> None:
        super().__init__()
        frames, side = total_stride(strides)
        self.whole = SpaceTimeToDepth(frames, side)
        self.short = nn.Linear(frames * side**2 * 3, features)
        self.merges = _module_list(SpaceTimeToDepth(*stride) for stride in strides)
        inputs = [r * s * s * c for (r, s), c in zip(strides, [3, *widths[:-1]], strict=True)]
        self.joins = _module_list(nn.Linear(i, o) for i, o in zip(inputs, widths, strict=True))
        self.stacks = _module_list(CausalConvStack(w, d, kernel) for w, d in zip(widths, depths, strict=True))
        self.norm = nn.LayerNorm(widths[-1], bias=False)
        self.head = nn.Linear(widths[-1], features)
        basis, deviation = video_dct_basis(frames, side, channels)
        nn.init.zeros_(self.short.weight)
        with torch.no_grad():
            # Latents of deviation 1 from the start.
            self.short.weight[: len(basis)] = basis / deviation[:, None]
        for constant in (self.short.bias, self.head.weight, self.head.bias):
            nn.init.zeros_(constant)

    def init_state(self, batch: int, height: int, width: int) -> VAEEncoderState:
        """Before the first frame of ``height`` x ``width`` pixels."""
        like = self.short.weight
        short = self.whole.init_state(like, batch, height, width, 3)
        merges, stacks, channels = [], [], 3
        for merge, stack, join in zip(self.merges, self.stacks, self.joins, strict=True):
            merges.append(merge.init_state(like, batch, height, width, channels))
            height, width, channels = height // merge.space, width // merge.space, join.out_features
            stacks.append(stack.init_state(like, batch, height, width))
        return VAEEncoderState(short, tuple(merges), tuple(stacks))

    def forward(self, video: Tensor, state: VAEEncoderState) -> tuple[Tensor, VAEEncoderState]:
        """The next frames, and the features that they complete."""
        blocks, short = self.whole(video, state.short)
        x, merges, stacks = video, [], []
        for i, (merge, join, stack) in enumerate(zip(self.merges, self.joins, self.stacks, strict=True)):
            x, waiting = merge(x, state.merges[i])
            x, past = stack(join(x), state.stacks[i])
            merges.append(waiting)
            stacks.append(past)
        return self.short(blocks) + self.head(self.norm(x)), VAEEncoderState(short, tuple(merges), tuple(stacks))


class VAEDecoder(nn.Module):
    """Latents to pixels, the encoder's mirror: [b, t', h, w, c] -> [b, t, H, W, 3]. Arguments as the encoder's."""

    stacks: Sequence[CausalConvStack]
    norms: Sequence[nn.LayerNorm]
    parts: Sequence[nn.Linear]
    splits: Sequence[DepthToSpaceTime]

    def __init__(
        self, channels: int, strides: list[tuple[int, int]], widths: list[int], depths: list[int], kernel: int
    ) -> None:
        super().__init__()
        frames, side = total_stride(strides)
        self.short = nn.Linear(channels, frames * side**2 * 3)
        self.whole = DepthToSpaceTime(frames, side)
        self.enter = SpatialConv(channels, widths[-1])
        self.stacks = _module_list(
            CausalConvStack(w, d, kernel) for w, d in zip(reversed(widths), reversed(depths), strict=True)
        )
        outputs = [r * s * s * c for (r, s), c in zip(strides, [3, *widths[:-1]], strict=True)]
        self.norms = _module_list(nn.LayerNorm(w, bias=False) for w in reversed(widths))
        self.parts = _module_list(nn.Linear(w, o) for w, o in zip(reversed(widths), reversed(outputs), strict=True))
        self.splits = _module_list(DepthToSpaceTime(*stride) for stride in reversed(strides))
        basis, deviation = video_dct_basis(frames, side, channels)
        nn.init.zeros_(self.short.weight)
        with torch.no_grad():
            self.short.weight[:, : len(basis)] = (basis * deviation[:, None]).T
        for constant in (self.short.bias, self.parts[-1].weight, self.parts[-1].bias):
            nn.init.zeros_(constant)

    def init_state(self, batch: int, height: int, width: int) -> VAEDecoderState:
        """Before the first latent of a grid of ``height`` x ``width``."""
        like = self.short.weight
        stacks = []
        for stack, split in zip(self.stacks, self.splits, strict=True):
            stacks.append(stack.init_state(like, batch, height, width))
            height, width = height * split.space, width * split.space
        splits = tuple(split.init_state(like, batch) for split in self.splits)
        return VAEDecoderState(self.whole.init_state(like, batch), splits, tuple(stacks))

    def forward(self, latents: Tensor, state: VAEDecoderState) -> tuple[Tensor, VAEDecoderState]:
        """The next latents, and their frames."""
        video, short = self.whole(self.short(latents), state.short)
        x, splits, stacks = self.enter(latents), [], []
        for i, (stack, norm, part, split) in enumerate(
            zip(self.stacks, self.norms, self.parts, self.splits, strict=True)
        ):
            x, past = stack(x, state.stacks[i])
            x, drop = split(part(norm(x)), state.splits[i])
            stacks.append(past)
            splits.append(drop)
        return video + x, VAEDecoderState(short, tuple(splits), tuple(stacks))


class CausalVAE(VideoTokenizer):
    """Video to continuous latents or to tokens, and back.

    Args:
        image_size: (height, width) of a frame in pixels.
        codebook: None for continuous latents with a KL penalty; a number of codes (VQ) or FSQ levels for tokens.
        latent_channels: c; with a codebook, the width on both sides of it.
        time_compression: frames a latent, a power of two; 1 makes a world playable frame by frame.
        patch_size: side of the squares of pixels that the first level takes in.
        widths: channels of each level, finest first; each level halves height and width, so that space is compressed
            by ``patch_size * 2 ** (len(widths) - 1)``. The deepest levels halve time too, as far as it is compressed;
            what is left, the first level takes in.
        depths: blocks of each level, in the encoder and again in the decoder.
        time_kernel: frames that a block's kernel spans; 1 makes an autoencoder of single frames.
        kl_weight: of the KL divergence from a unit Gaussian, averaged over the latents' elements.
        latents_mean, latents_std: a number a channel, what ``encode`` normalises continuous latents by
            (``vwm.tokenizers.latent_statistics`` measures them); by default 0 and 1.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        codebook: Codebook | None = None,
        latent_channels: int = 16,
        time_compression: int = 4,
        patch_size: int = 4,
        widths: list[int] = [128, 256],  # noqa: B006 (read only; a list because configs are JSON)
        depths: list[int] = [2, 3],  # noqa: B006
        time_kernel: int = 3,
        kl_weight: float = 1e-4,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        strides = level_strides(time_compression, patch_size, widths, depths)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.space_compression = total_stride(strides)[1]
        self.grid = patch_grid(self.image_size, self.space_compression)
        self.time_compression, self.kl_weight = time_compression, kl_weight
        features = 2 * latent_channels if codebook is None else latent_channels
        self.encoder = VAEEncoder(latent_channels, features, strides, widths, depths, time_kernel)
        self.decoder = VAEDecoder(latent_channels, strides, widths, depths, time_kernel)
        if codebook is None:
            self.channels = latent_channels
            # A mean and a log-variance; little noise at first.
            nn.init.constant_(self.encoder.short.bias[latent_channels:], -8.0)
        else:
            self.quantizer = Quantizer(latent_channels, codebook, code_width=min(32, latent_channels))
            self.codebook_size = self.quantizer.size
        self.register_latent_statistics(latent_channels, latents_mean, latents_std)

    @property
    def last_layer(self) -> Tensor:
        """The weight that paints, for losses that are scaled by their gradients in it."""
        return self.decoder.parts[-1].weight

    def forward(self, video: Tensor) -> TokenizerOutput:
        """float [b, t, 3, H, W] in [-1, 1], t = 1 + r k. In training mode the latents carry the posterior's noise."""
        self._check(video)
        features, _ = self._encode(video, self._encoder_state(video))
        if self.codebook_size:
            z, latents, penalty = self.quantizer(features)
        else:
            # The posterior in float32 or finer, whatever autocast says.
            mean, log_variance = at_least_float32(features).chunk(2, dim=-1)
            log_variance = log_variance.clamp(-30, 10)
            penalty = self.kl_weight * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
            latents = self.normalize(mean)
        return TokenizerOutput(self._decode(z, self._decoder_state(z))[0], latents, penalty)

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W], t = 1 + r k -> tokens int64 [b, 1 + k, h, w], or normalised means [b, 1 + k, h, w, c].

        Raises:
            ValueError: frames of another size, or a number of frames that leaves a latent half filled.
        """
        self._check(video)
        return self._latents(self._encode(video, self._encoder_state(video))[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Tokens [b, 1 + k, h, w] or latents [b, 1 + k, h, w, c] -> float [b, 1 + r k, 3, H, W]."""
        z = self._codes(latents)
        return self._decode(z, self._decoder_state(z))[0]

    def init_encoder(self, batch: int) -> VAEEncoderState:
        """The encoder's state before the first frame."""
        return self.encoder.init_state(batch, *self.image_size)

    def init_decoder(self, batch: int) -> VAEDecoderState:
        """The decoder's state before the first latent."""
        return self.decoder.init_state(batch, *self.grid)

    def encode_step(self, state: VAEEncoderState, video: Tensor) -> tuple[VAEEncoderState, Tensor]:
        """The next frames, any number of them, and the latents that they complete."""
        self.check_video(video)
        features, state = self._encode(video, state)
        return state, self._latents(features)

    def decode_step(self, state: VAEDecoderState, latents: Tensor) -> tuple[VAEDecoderState, Tensor]:
        """The next latents, and their frames."""
        video, state = self._decode(self._codes(latents), state)
        return state, video

    def normalize(self, z: Tensor) -> Tensor:
        """Latents as ``encode`` gives them, of latents as the network makes them."""
        return (z - self.mean) / self.std

    def _check(self, video: Tensor) -> None:
        self.check_video(video)
        frames, r = video.shape[1], self.time_compression
        if frames % r != 1 % r:
            below = (frames - 1) // r * r + 1
            near = f"{below} or {below + r}" if below > 0 else f"{below + r}"
            raise ValueError(f"video of {frames} frames: {r} frames a latent need 1 + {r} k frames, {near} for example")

    def _encode(self, video: Tensor, state: VAEEncoderState) -> tuple[Tensor, VAEEncoderState]:
        return self.encoder(rearrange(video, "b t c h w -> b t h w c"), state)

    def _decode(self, z: Tensor, state: VAEDecoderState) -> tuple[Tensor, VAEDecoderState]:
        video, state = self.decoder(z, state)
        return rearrange(video, "b t h w c -> b t c h w"), state

    def _latents(self, features: Tensor) -> Tensor:
        if self.codebook_size:
            return self.quantizer(features).indices
        return self.normalize(at_least_float32(features).chunk(2, dim=-1)[0])

    def _codes(self, latents: Tensor) -> Tensor:
        if self.codebook_size:
            return self.quantizer.lookup(latents).to(self.decoder.short.weight.dtype)
        return latents * self.std + self.mean

    def _encoder_state(self, video: Tensor) -> VAEEncoderState:
        return self.encoder.init_state(len(video), *video.shape[-2:])

    def _decoder_state(self, z: Tensor) -> VAEDecoderState:
        return self.decoder.init_state(len(z), *z.shape[2:4])


def level_strides(
    time_compression: int, patch_size: int, widths: list[int], depths: list[int]
) -> list[tuple[int, int]]:
    """(frames, side) that each level merges, finest first. Raises ValueError where that cannot be."""
    if time_compression < 1 or time_compression & (time_compression - 1):
        raise ValueError(f"time_compression={time_compression} must be a power of two")
    if not widths or len(widths) != len(depths):
        raise ValueError(f"widths={widths} and depths={depths} must name the same levels, at least one")
    halvings = min(len(widths) - 1, time_compression.bit_length() - 1)
    deeper = [(2 if level > len(widths) - 1 - halvings else 1, 2) for level in range(1, len(widths))]
    return [(time_compression >> halvings, patch_size), *deeper]


def total_stride(strides: list[tuple[int, int]]) -> tuple[int, int]:
    """Frames and side that all levels merge together."""
    return math.prod(r for r, _ in strides), math.prod(s for _, s in strides)


def _module_list(parts: Iterable[nn.Module]) -> Any:
    """A ModuleList, which does not tell the type checker what it holds."""
    return nn.ModuleList(parts)
