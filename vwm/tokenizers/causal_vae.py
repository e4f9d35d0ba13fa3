"""A causal video autoencoder: KL (arXiv 1312.6114), or with a codebook (VQ-VAE, arXiv 1711.00937; FSQ, 2309.15505).

Encoder and decoder are causal in time and process images and videos. The first latent holds the first frame only,
later latents hold ``time_compression`` frames each, so that 1 + r k frames are 1 + k latents.

Encoder and decoder each add two paths. The short path is linear: it maps each block of pixels to the latent at its
position and back. It is initialized to a cosine transform, so that training starts with a good reconstruction. The long
path is a causal convolutional network, initialized to zero, which learns the remainder.

Legend: b batch, t time, t' latents in time, h w grid of latents, H W pixels, c latent channels, r frames per latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.causal_conv import CausalConvStack, DepthToSpaceTime, FrameBuffer, SpaceTimeToDepth, SpatialConv
from vwm.nn.clip_draws import draw_normal_like
from vwm.nn.cosine_transform import video_dct_basis
from vwm.nn.pixels import patch_grid
from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import Codebook, Quantizer


class VAEEncoderState(NamedTuple):
    """State of the encoder: incomplete groups of frames (short path and each level), and past frames of each block."""

    short: FrameBuffer
    merges: tuple[FrameBuffer, ...]
    stacks: tuple[tuple[Tensor, ...], ...]


class VAEDecoderState(NamedTuple):
    """State of the decoder: initial frames to drop, for the short path and each level, and past frames per block."""

    short: Tensor
    splits: tuple[Tensor, ...]
    stacks: tuple[tuple[Tensor, ...], ...]


class VAEEncoder(nn.Module):
    """Encoder network, [b, t, H, W, 3] -> [b, t', h, w, features].

    Args:
        channels: c, channels of the latents.
        features: output channels, at least c; the first c are initialized to the cosine transform.
        strides: (frames, side) of the block that each level merges, finest level first.
        widths: channels of each level.
        depths: number of blocks of each level.
        kernel: number of frames that the temporal kernels span.
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
        self.full_block = SpaceTimeToDepth(frames, side)
        self.short = nn.Linear(frames * side**2 * 3, features)
        self.merges = _module_list(SpaceTimeToDepth(*stride) for stride in strides)
        inputs = [r * s * s * c for (r, s), c in zip(strides, [3, *widths[:-1]], strict=True)]
        self.joins = _module_list(nn.Linear(i, o) for i, o in zip(inputs, widths, strict=True))
        self.stacks = _module_list(CausalConvStack(w, d, kernel) for w, d in zip(widths, depths, strict=True))
        self.norm = nn.LayerNorm(widths[-1], bias=False)
        self.head = nn.Linear(widths[-1], features)
        nn.init.zeros_(self.short.weight)
        if not self.short.weight.is_meta:  # such a weight has no values
            basis, deviation = video_dct_basis(frames, side, channels)
            with torch.no_grad():
                # Initially, latents have a standard deviation of about 1.
                self.short.weight[: len(basis)] = basis / deviation[:, None]
        for constant in (self.short.bias, self.head.weight, self.head.bias):
            nn.init.zeros_(constant)

    def init_state(self, batch: int, height: int, width: int) -> VAEEncoderState:
        """Return the state before the first frame of ``height`` x ``width`` pixels."""
        like = self.short.weight
        short = self.full_block.init_state(like, batch, height, width, 3)
        merges, stacks, channels = [], [], 3
        for merge, stack, join in zip(self.merges, self.stacks, self.joins, strict=True):
            merges.append(merge.init_state(like, batch, height, width, channels))
            height, width, channels = height // merge.space, width // merge.space, join.out_features
            stacks.append(stack.init_state(like, batch, height, width))
        return VAEEncoderState(short, tuple(merges), tuple(stacks))

    def forward(self, video: Tensor, state: VAEEncoderState) -> tuple[Tensor, VAEEncoderState]:
        """Encode the next frames; return the features of the latents that they complete, and the state."""
        blocks, short = self.full_block(video, state.short)
        x, merges, stacks = video, [], []
        for i, (merge, join, stack) in enumerate(zip(self.merges, self.joins, self.stacks, strict=True)):
            x, incomplete = merge(x, state.merges[i])
            x, past = stack(join(x), state.stacks[i])
            merges.append(incomplete)
            stacks.append(past)
        return self.short(blocks) + self.head(self.norm(x)), VAEEncoderState(short, tuple(merges), tuple(stacks))


class VAEDecoder(nn.Module):
    """Decoder network, the mirror of ``VAEEncoder`` with the same arguments: [b, t', h, w, c] -> [b, t, H, W, 3]."""

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
        self.full_block = DepthToSpaceTime(frames, side)
        self.enter = SpatialConv(channels, widths[-1])
        self.stacks = _module_list(
            CausalConvStack(w, d, kernel) for w, d in zip(reversed(widths), reversed(depths), strict=True)
        )
        outputs = [r * s * s * c for (r, s), c in zip(strides, [3, *widths[:-1]], strict=True)]
        self.norms = _module_list(nn.LayerNorm(w, bias=False) for w in reversed(widths))
        self.parts = _module_list(nn.Linear(w, o) for w, o in zip(reversed(widths), reversed(outputs), strict=True))
        self.splits = _module_list(DepthToSpaceTime(*stride) for stride in reversed(strides))
        nn.init.zeros_(self.short.weight)
        if not self.short.weight.is_meta:
            basis, deviation = video_dct_basis(frames, side, channels)
            with torch.no_grad():
                self.short.weight[:, : len(basis)] = (basis * deviation[:, None]).T
        for constant in (self.short.bias, self.parts[-1].weight, self.parts[-1].bias):
            nn.init.zeros_(constant)

    def init_state(self, batch: int, height: int, width: int) -> VAEDecoderState:
        """Return the state before the first latent of a grid of ``height`` x ``width``."""
        like = self.short.weight
        stacks = []
        for stack, split in zip(self.stacks, self.splits, strict=True):
            stacks.append(stack.init_state(like, batch, height, width))
            height, width = height * split.space, width * split.space
        splits = tuple(split.init_state(like, batch) for split in self.splits)
        return VAEDecoderState(self.full_block.init_state(like, batch), splits, tuple(stacks))

    def forward(self, latents: Tensor, state: VAEDecoderState) -> tuple[Tensor, VAEDecoderState]:
        """Decode the next latents; return their frames, and the state."""
        video, short = self.full_block(self.short(latents), state.short)
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
    """Causal tokenizer with continuous latents or tokens.

    Args:
        image_size: (height, width) of a frame in pixels.
        codebook: None for continuous latents with a KL penalty; a number of codes (VQ) or FSQ levels for tokens.
        latent_channels: c; with a codebook, the width of its inputs and outputs.
        time_compression: number of frames per latent, a power of two; 1 for simulators that are played.
        patch_size: side of the squares of pixels that the first level merges.
        widths: channels of each level, finest first. Each further level halves height and width, so that space is
            compressed by ``patch_size * 2 ** (len(widths) - 1)``. The deepest levels also halve time, as far as
            required; the first level merges the remaining frames.
        depths: number of blocks of each level, in the encoder and in the decoder.
        time_kernel: number of frames that the temporal kernels span; 1 gives an autoencoder of single frames.
        kl_weight: weight of the KL divergence from a unit Gaussian, averaged over the elements of the latents.
        latents_mean, latents_std: one value per channel, by which ``encode`` normalizes continuous latents
            (``vwm.tokenizers.latent_statistics`` measures them); by default 0 and 1.

    Raises:
        ValueError: the levels or the image size do not fit each other.
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
        self.time_compression = time_compression
        self.kl_weight = kl_weight
        features = 2 * latent_channels if codebook is None else latent_channels
        self.encoder = VAEEncoder(
            channels=latent_channels,
            features=features,
            strides=strides,
            widths=widths,
            depths=depths,
            kernel=time_kernel,
        )
        self.decoder = VAEDecoder(
            channels=latent_channels, strides=strides, widths=widths, depths=depths, kernel=time_kernel
        )
        if codebook is None:
            self.channels = latent_channels
            # Features are means and log-variances; the initial variance is small.
            nn.init.constant_(self.encoder.short.bias[latent_channels:], -8.0)
        else:
            self.quantizer = Quantizer(latent_channels, codebook, code_width=min(32, latent_channels))
            self.codebook_size = self.quantizer.size
        self.register_latent_statistics(latent_channels, latents_mean, latents_std)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last layer, for losses that are scaled by their gradients in it."""
        return self.decoder.parts[-1].weight

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1], t = 1 + r k. In training mode, latents are sampled."""
        self._check(video)
        features, _ = self._encode(video, self._encoder_state(video))
        if self.codebook_size:
            z, latents, penalty = self.quantizer(features)
        else:
            # In at least float32, even under autocast.
            mean, log_variance = at_least_float32(features).chunk(2, dim=-1)
            log_variance = log_variance.clamp(-30, 10)
            penalty = self.kl_weight * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            z = mean + (0.5 * log_variance).exp() * draw_normal_like(mean) if self.training else mean
            latents = self.normalize(mean)
        return TokenizerOutput(self._decode(z, self._decoder_state(z))[0], latents, penalty)

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W], t = 1 + r k -> tokens int64 [b, 1 + k, h, w], or normalized means [b, 1 + k, h, w, c].

        Raises:
            ValueError: frames of another size, or a number of frames that does not fill the last latent.
        """
        self._check(video)
        return self._features_to_latents(self._encode(video, self._encoder_state(video))[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Tokens [b, 1 + k, h, w] or latents [b, 1 + k, h, w, c] -> float [b, 1 + r k, 3, H, W]."""
        z = self._denormalize(latents)
        return self._decode(z, self._decoder_state(z))[0]

    def init_encoder(self, batch: int) -> VAEEncoderState:
        """Return the state of the encoder before the first frame."""
        return self.encoder.init_state(batch, *self.image_size)

    def init_decoder(self, batch: int) -> VAEDecoderState:
        """Return the state of the decoder before the first latent."""
        return self.decoder.init_state(batch, *self.grid)

    def encode_step(self, state: VAEEncoderState, video: Tensor) -> tuple[VAEEncoderState, Tensor]:
        """Encode any number of next frames; return the state and the latents that they complete."""
        self.check_video(video)
        features, state = self._encode(video, state)
        return state, self._features_to_latents(features)

    def decode_step(self, state: VAEDecoderState, latents: Tensor) -> tuple[VAEDecoderState, Tensor]:
        """Decode the next latents; return the state and their frames."""
        video, state = self._decode(self._denormalize(latents), state)
        return state, video

    def normalize(self, z: Tensor) -> Tensor:
        """Normalize latents of the network to those that ``encode`` returns."""
        return (z - self.mean) / self.std

    def _check(self, video: Tensor) -> None:
        self.check_video(video)
        frames, r = video.shape[1], self.time_compression
        if frames % r != 1 % r:
            below = (frames - 1) // r * r + 1
            near = f"{below} or {below + r}" if below > 0 else f"{below + r}"
            raise ValueError(
                f"video of {frames} frames: {r} frames per latent need 1 + {r} k frames, for example {near}"
            )

    def _encode(self, video: Tensor, state: VAEEncoderState) -> tuple[Tensor, VAEEncoderState]:
        return self.encoder(rearrange(video, "b t c h w -> b t h w c"), state)

    def _decode(self, z: Tensor, state: VAEDecoderState) -> tuple[Tensor, VAEDecoderState]:
        video, state = self.decoder(z, state)
        return rearrange(video, "b t h w c -> b t c h w"), state

    def _features_to_latents(self, features: Tensor) -> Tensor:
        if self.codebook_size:
            return self.quantizer(features).indices
        return self.normalize(at_least_float32(features).chunk(2, dim=-1)[0])

    def _denormalize(self, latents: Tensor) -> Tensor:
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
    """Return (frames, side) of the block that each level merges, finest first. Raises ValueError for wrong settings."""
    if time_compression < 1 or time_compression & (time_compression - 1):
        raise ValueError(f"time_compression={time_compression} must be a power of two")
    if not widths or len(widths) != len(depths):
        raise ValueError(f"widths={widths} and depths={depths} must have the same number of levels, at least one")
    halvings = min(len(widths) - 1, time_compression.bit_length() - 1)
    deeper = [(2 if level > len(widths) - 1 - halvings else 1, 2) for level in range(1, len(widths))]
    return [(time_compression >> halvings, patch_size), *deeper]


def total_stride(strides: list[tuple[int, int]]) -> tuple[int, int]:
    """Return (frames, side) of the block that all levels merge together."""
    return math.prod(r for r, _ in strides), math.prod(s for _, s in strides)


def _module_list(parts: Iterable[nn.Module]) -> Any:
    """Return a ``ModuleList``, typed as Any because it does not declare the type of its elements."""
    return nn.ModuleList(parts)
