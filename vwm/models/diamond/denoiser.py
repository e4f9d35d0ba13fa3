"""DIAMOND's denoiser: a U-Net that predicts the next frame from the last frames, with EDM's preconditioning.

Elucidating the design space of diffusion models (EDM, arXiv 2206.00364) gives the preconditioning; DIAMOND
(arXiv 2405.12399) adds the conditions on past frames and actions, and noise that is equal for all pixels of a channel.

Legend: b batch, n past frames, h w pixels, d width of the condition, a columns of an action.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.diamond.blocks import ChannelGroupNorm, conv3x3
from vwm.models.diamond.unet import ConditionedUNet
from vwm.nn.precision import at_least_float32


class NoiseLevelFeatures(nn.Module):
    """Random Fourier features of a noise level; the frequencies are drawn once and saved with the weights."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(1, width // 2))

    def forward(self, level: Tensor) -> Tensor:
        """float [b] -> float [b, d]."""
        angle = 2 * math.pi * level[:, None] * self.weight.to(level.dtype)
        return torch.cat((angle.cos(), angle.sin()), dim=-1).to(self.weight.dtype)


class ConditionedFrameNetwork(nn.Module):
    """The network inside the preconditioning, named as in the published weights (``inner_model``).

    Args:
        channels_in: of all images that it reads.
        num_actions: number of actions, or of columns of an action; 0 without actions.
        past_frames: n, whose actions share the width of the condition.
        condition_width: d.
        depths, channels, attention: see ``ConditionedUNet``.
        noisy_past: whether the noise level of the past frames is a condition.
    """

    def __init__(
        self,
        channels_in: int,
        num_actions: int,
        past_frames: int,
        condition_width: int,
        depths: list[int],
        channels: list[int],
        attention: list[bool],
        noisy_past: bool,
    ) -> None:
        super().__init__()
        self.noise_emb = NoiseLevelFeatures(condition_width)
        self.noise_cond_emb = NoiseLevelFeatures(condition_width) if noisy_past else None
        embedding = nn.Embedding(num_actions, condition_width // past_frames) if num_actions else None
        self.act_emb = None if embedding is None else nn.Sequential(embedding)
        self.cond_proj = nn.Sequential(
            nn.Linear(condition_width, condition_width), nn.SiLU(), nn.Linear(condition_width, condition_width)
        )
        self.conv_in = conv3x3(channels_in, channels[0])
        self.unet = ConditionedUNet(condition_width, depths, channels, attention)
        self.norm_out = ChannelGroupNorm(channels[0])
        self.conv_out = conv3x3(channels[0], 3)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, images: Tensor, level: Tensor, past_level: Tensor | None, actions: Tensor | None) -> Tensor:
        """Predict float [b, 3, h, w] from images [b, c, h, w].

        Args:
            images: past frames and the noisy one.
            level: float [b], the logarithm of the noise level over 4.
            past_level: that of the past frames, where it is a condition.
            actions: int64 [b, n], or columns of zeros and ones [b, n, a]; None without actions.
        """
        condition = self.noise_emb(level)
        if self.noise_cond_emb is not None:
            condition = condition + self.noise_cond_emb(torch.zeros_like(level) if past_level is None else past_level)
        if self.act_emb is not None:
            assert actions is not None, "this network is conditioned on actions"
            embedded = F.embedding if not actions.is_floating_point() else _embed_columns
            condition = condition + embedded(actions, self.act_emb.get_parameter("0.weight")).flatten(1)
        x = self.unet(self.conv_in(images), self.cond_proj(condition))
        predicted: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return predicted


def _embed_columns(columns: Tensor, weight: Tensor) -> Tensor:
    """Add up the embeddings of the columns that are 1: [b, n, a] -> [b, n, d]."""
    return columns.to(weight) @ weight


class Preconditioning(NamedTuple):
    """EDM's scales of a noise level, float [b, 1, 1, 1]; ``level``, float [b], is what the network reads.

    The clean frame is ``skip * noisy + out * network(into * noisy)``.
    """

    into: Tensor
    skip: Tensor
    out: Tensor
    level: Tensor


class DiamondDenoiser(ModelMixin, ConfigMixin):
    """Predicts a clean frame from a noisy one and the past; as an upsampler, from a frame of low resolution, too.

    Args:
        num_actions: number of discrete actions, or of the columns of zeros and ones where ``action_columns``; 0
            without actions.
        action_columns: whether actions are columns, of which several can be 1.
        past_frames: n.
        condition_width: d.
        depths, channels, attention: see ``ConditionedUNet``.
        sigma_data: standard deviation of pixels in [-1, 1].
        offset_noise: standard deviation of the noise that is equal for all pixels of a channel.
        noisy_past: whether the past frames may have noise, whose level is a condition.
        upsampling: how many times larger the frames are than those of low resolution, which are one more condition; 0
            of a denoiser that is no upsampler.

    Raises:
        ValueError: the settings do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        num_actions: int = 4,
        action_columns: bool = False,
        past_frames: int = 4,
        condition_width: int = 256,
        depths: list[int] = [2, 2, 2, 2],  # noqa: B006
        channels: list[int] = [64, 64, 64, 64],  # noqa: B006
        attention: list[bool] = [False, False, False, False],  # noqa: B006
        sigma_data: float = 0.5,
        offset_noise: float = 0.3,
        noisy_past: bool = False,
        upsampling: int = 0,
    ) -> None:
        super().__init__()
        if past_frames < 1 or condition_width % 2 or (num_actions and condition_width < past_frames):
            raise ValueError(
                f"condition_width={condition_width} must be even and hold past_frames={past_frames} actions"
            )
        if num_actions and condition_width % past_frames:
            raise ValueError(f"past_frames={past_frames} must divide condition_width={condition_width}")
        if not sigma_data > 0 or offset_noise < 0:
            raise ValueError(f"sigma_data={sigma_data} must be positive and offset_noise={offset_noise} not negative")
        if upsampling == 1 or (upsampling and num_actions):
            raise ValueError(f"upsampling={upsampling}: an upsampler has a factor of 2 or more and takes no actions")
        self.num_actions = num_actions
        self.action_columns = action_columns
        self.past_frames = past_frames
        self.sigma_data = sigma_data
        self.offset_noise = offset_noise
        self.noisy_past = noisy_past
        self.upsampling = upsampling
        self.inner_model = ConditionedFrameNetwork(
            channels_in=3 * (past_frames + 1 + bool(upsampling)),
            num_actions=num_actions,
            past_frames=past_frames,
            condition_width=condition_width,
            depths=depths,
            channels=channels,
            attention=attention,
            noisy_past=noisy_past or bool(upsampling),
        )

    def precondition(self, sigma: Tensor) -> Preconditioning:
        """Return the scales of noise levels, float [b]."""
        sigma = (sigma.square() + self.offset_noise**2).sqrt()
        total = sigma.square() + self.sigma_data**2
        skip = self.sigma_data**2 / total
        scales = (1 / total.sqrt(), skip, sigma * skip.sqrt())
        into, skip, out = (scale[:, None, None, None] for scale in scales)
        return Preconditioning(into=into, skip=skip, out=out, level=sigma.log() / 4)

    def forward(
        self,
        noisy: Tensor,
        scales: Preconditioning,
        past: Tensor,
        actions: Tensor | None,
        past_sigma: Tensor | None = None,
    ) -> Tensor:
        """Return what the network predicts, float [b, 3, h, w] of about unit variance, before the preconditioning.

        Args:
            noisy: float [b, 3, h, w].
            scales: of its noise level.
            past: float [b, n, 3, h, w] in [-1, 1], of an upsampler with the frame of low resolution as the last one,
                enlarged.
            actions: int64 [b, n] or columns [b, n, a], the last of which leads to the frame; None of an upsampler.
            past_sigma: noise level of the past frames, float [b]; None without noise.
        """
        dtype = self.inner_model.conv_in.weight.dtype
        images = torch.cat((past.flatten(1, 2) / self.sigma_data, noisy * scales.into), dim=1)
        past_level = None if past_sigma is None else past_sigma.log() / 4
        return at_least_float32(self.inner_model(images.to(dtype), scales.level, past_level, actions))

    def clean(self, noisy: Tensor, predicted: Tensor, scales: Preconditioning) -> Tensor:
        """Return the clean frame of a prediction, float [b, 3, h, w], cut down to the 256 levels of a pixel.

        Levels are truncated and not rounded, as in the published models, whose training saw such frames.
        """
        frame = scales.skip * noisy + scales.out * predicted
        return pixel_levels(((frame.clamp(-1, 1) + 1) / 2 * 255).floor())


def pixel_levels(levels: Tensor) -> Tensor:
    """Convert levels from 0 to 255 to float in [-1, 1]."""
    return levels / 255 * 2 - 1


def enlarge(frames: Tensor, factor: int) -> Tensor:
    """Enlarge float [b, 3, h, w] by bicubic interpolation, as an upsampler reads frames of low resolution."""
    return F.interpolate(frames, scale_factor=factor, mode="bicubic")


def uniform_sigma(sigma: float, like: Tensor) -> Tensor:
    """Return a noise level for each frame of a batch, float [b]."""
    return torch.full((len(like),), sigma, dtype=like.dtype, device=like.device)
