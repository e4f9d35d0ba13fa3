"""A diffusion upsampler as a tokenizer: latents are frames of low resolution, and decoding samples the full frames.

Each full frame depends on the one before it, so that decoding is streaming: its state holds that frame.

Legend: b batch, t time, h w pixels of low resolution, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.network_base import register_to_config
from vwm.core.seeds import fold_in, seeded_normal
from vwm.core.tokenizer import VideoTokenizer
from vwm.models.diamond.denoiser import DiamondDenoiser, enlarge, pixel_levels
from vwm.models.diamond.sampling import DiamondSampling, check_diamond_sampling, sample_frame

UPSAMPLING_STREAM = -11
"""Folded into a seed to sample full frames."""


class UpsamplerState(NamedTuple):
    """The state of the decoder.

    Attributes:
        past: float [b, n, 3, H, W], the last full frames; gray where there were none.
        position: int64 [b], number of frames so far.
        seed: int64 [b].
    """

    past: Tensor
    position: Tensor
    seed: Tensor


class DiamondUpsampler(VideoTokenizer):
    """DIAMOND's upsampler of Counter-Strike: see ``VideoTokenizer``.

    Encoding resizes by bicubic interpolation and rounds to the 256 levels of a pixel. Latents are pixels in [-1, 1].

    Args:
        image_size: (H, W) of the full frames.
        factor: how many times larger they are along each side.
        past_frames: n, full frames that the network sees.
        condition_width, depths, channels, attention, sigma_data, offset_noise: see ``DiamondDenoiser``.
        steps, sigma_min, sigma_max, order, churn, churn_min, churn_max, churn_noise: see ``DiamondSampling``.

    Raises:
        ValueError: the factor does not divide the frame, or the settings do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (150, 280),
        factor: int = 5,
        past_frames: int = 1,
        condition_width: int = 2048,
        depths: list[int] = [2, 2, 2, 2],  # noqa: B006
        channels: list[int] = [64, 64, 128, 256],  # noqa: B006
        attention: list[bool] = [False, False, False, True],  # noqa: B006
        sigma_data: float = 0.5,
        offset_noise: float = 0.1,
        steps: int = 1,
        sigma_min: float = 1.0,
        sigma_max: float = 5.0,
        order: int = 2,
        churn: float = 10.0,
        churn_min: float = 1.0,
        churn_max: float = 5.0,
        churn_noise: float = 0.9,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        if factor < 2 or any(side % factor for side in self.image_size):
            raise ValueError(f"factor={factor} must be 2 or more and divide image_size={self.image_size}")
        self.grid = (self.image_size[0] // factor, self.image_size[1] // factor)
        self.channels = 3
        self.past_frames = past_frames
        self.factor = factor
        self.sampling = DiamondSampling(
            steps=steps,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            order=order,
            churn=churn,
            churn_min=churn_min,
            churn_max=churn_max,
            churn_noise=churn_noise,
        )
        self.denoiser = DiamondDenoiser(
            num_actions=0,
            past_frames=past_frames,
            condition_width=condition_width,
            depths=depths,
            channels=channels,
            attention=attention,
            sigma_data=sigma_data,
            offset_noise=offset_noise,
            upsampling=factor,
        )
        check_diamond_sampling(self.denoiser, self.sampling)

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, 3]."""
        self.check_video(video)
        small = F.interpolate(video.flatten(0, 1), size=self.grid, mode="bicubic", antialias=True, align_corners=False)
        levels = ((small + 1) * 127.5).round().clamp(0, 255)
        return (levels / 127.5 - 1).unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, 3] -> float [b, t, 3, H, W], frame by frame from the seed 0."""
        return self.decode_step(self.init_decoder(len(latents)), latents)[1]

    def init_encoder(self, batch: int) -> tuple[()]:
        """Return the empty state."""
        return ()

    def encode_step(self, state: tuple[()], video: Tensor) -> tuple[tuple[()], Tensor]:
        """Encode the next frames; return the state and their latents."""
        return state, self.encode(video)

    def init_decoder(self, batch: int) -> UpsamplerState:
        """Return the state before the first frame, of the seed 0."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.device)
        past = torch.zeros(batch, self.past_frames, 3, *self.image_size, dtype=self.dtype, device=self.device)
        return UpsamplerState(past, zeros, zeros)

    def observe(self, state: UpsamplerState, video: Tensor) -> UpsamplerState:
        """Add real full frames, float [b, t, 3, H, W], to the state of the decoder."""
        past = torch.cat((state.past, video.to(state.past.dtype)), dim=1)[:, -self.past_frames :]
        return state._replace(past=past, position=state.position + video.shape[1])

    @torch.no_grad()
    def decode_step(self, state: UpsamplerState, latents: Tensor) -> tuple[UpsamplerState, Tensor]:
        """Sample the full frames of the next latents."""
        shown = []
        for latent in latents.to(state.past.dtype).permute(0, 1, 4, 2, 3).unbind(1):
            frame = self._sample(state, latent)
            state = self.observe(state, frame[:, None])
            shown.append(frame)
        return state, torch.stack(shown, dim=1)

    def _sample(self, state: UpsamplerState, latent: Tensor) -> Tensor:
        """Sample the full frame, float [b, 3, H, W], of a frame of low resolution [b, 3, h, w]."""
        seed = fold_in(fold_in(state.seed, UPSAMPLING_STREAM), state.position)

        def noise(draw: int) -> Tensor:
            return seeded_normal(fold_in(seed, draw), 3, *self.image_size).to(latent.dtype)

        past = torch.cat((state.past, enlarge(latent, self.factor)[:, None]), dim=1)
        return rounded_pixels(sample_frame(self.denoiser, past, None, noise, noise, self.sampling))


def rounded_pixels(frames: Tensor) -> Tensor:
    """Round frames in [-1, 1] to the nearest of 256 levels: what is shown is what the network sees at the next step."""
    return pixel_levels(((frames + 1) * 127.5).round().clamp(0, 255))
