"""Dreamer 4's causal tokenizer (arXiv 2509.24527, section 3.1): a masked autoencoder whose bottleneck is latent tokens.

In every frame, learned latent tokens gather what the patches hold; they alone go through a narrow bottleneck, and the
decoder paints the patches from them. In training a random share of each frame's patches is hidden from the encoder,
which makes latents that a dynamics model can foretell (MAE: arXiv 2111.06377).

Legend: b batch, t time, H W pixels, n patches, h w the grid of latents, l = h*w, c channels of a latent, d width.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class MaskedAutoencoderTokenizer(VideoTokenizer):
    """Video to continuous latents between -1 and 1 (before they are normalised), and back.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: side of the square of pixels that one patch token stands for.
        latent_grid: (h, w), how many latents a frame has. They stand on a grid over the picture only by their
            positions; each of them may gather from anywhere. (l, 1) is fine too.
        latent_channels: c.
        mask_rate: in training each frame hides a share of its patches drawn from [0, mask_rate].
        width: of the transformers, d.
        depth: layers in the encoder, and again in the decoder.
        heads: attention heads.
        window: frames that time attention spans.
        kv_heads, time_every, soft_cap: see ``VideoTransformer``.
        latents_mean, latents_std: a number a channel, what ``encode`` normalises latents by
            (``vwm.tokenizers.latent_statistics`` measures them); by default 0 and 1.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 8,
        latent_grid: tuple[int, int] = (4, 4),
        latent_channels: int = 16,
        mask_rate: float = 0.9,
        width: int = 256,
        depth: int = 8,
        heads: int = 8,
        window: int = 16,
        kv_heads: int | None = None,
        time_every: int = 4,
        soft_cap: float | None = None,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mask_rate < 1:
            raise ValueError(f"mask_rate={mask_rate} must be at least 0 and less than 1")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size, self.mask_rate = patch_size, mask_rate
        rows, columns = patch_grid(self.image_size, patch_size)
        self.patch_rows = rows
        self.grid, self.channels = (int(latent_grid[0]), int(latent_grid[1])), latent_channels
        latents, pixels = self.tokens_per_frame, 3 * patch_size**2

        def transformer() -> VideoTransformer:
            return VideoTransformer(
                width, depth, heads, window, kv_heads=kv_heads, time_every=time_every, soft_cap=soft_cap
            )

        self.embed = nn.Linear(pixels, width)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.latent_queries = nn.Parameter(torch.randn(latents, width) * 0.02)
        self.encoder = transformer()
        self.squeeze = nn.Linear(width, latent_channels)
        self.unsqueeze = nn.Linear(latent_channels, width)
        self.patch_queries = nn.Parameter(torch.randn(rows * columns, width) * 0.02)
        self.decoder = transformer()
        self.paint = nn.Linear(width, pixels)

        # Latents stand evenly over the picture, in the patches' units.
        spread = torch.tensor([rows / self.grid[0], columns / self.grid[1]])
        places = (grid_coordinates(*self.grid) + 0.5) * spread - 0.5
        self.register_buffer("places", torch.cat((places, grid_coordinates(rows, columns))), persistent=False)
        latent = torch.arange(latents + rows * columns) < latents
        # In the encoder latents look at everything and patches at patches; in the decoder it is the other way round.
        # So what a patch holds can only come out by way of the latents.
        self.register_buffer("encoder_mask", latent[:, None] | ~latent[None, :], persistent=False)
        self.register_buffer("decoder_mask", ~latent[:, None] | latent[None, :], persistent=False)
        self.register_latent_statistics(latent_channels, latents_mean, latents_std)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """There and back: float [b, t, 3, H, W] in [-1, 1]. In training mode some patches are hidden."""
        self.check_video(video)
        tokens = self._mask(self._patches(video)) if self.training else self._patches(video)
        latents = self._latents(self.encoder(tokens, self.places, space_mask=self.encoder_mask))
        return TokenizerOutput(self.decode(latents), latents, video.new_zeros(()))

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, c]."""
        self.check_video(video)
        return self._latents(self.encoder(self._patches(video), self.places, space_mask=self.encoder_mask))

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, c] -> float [b, t, 3, H, W]."""
        return self._paint(self.decoder(self._queries(latents), self.places, space_mask=self.decoder_mask))

    def init_encoder(self, batch: int) -> TransformerState:
        """The encoder's state before the first frame."""
        return self.encoder.init_state(batch, len(self.places))

    def init_decoder(self, batch: int) -> TransformerState:
        """The decoder's state before the first frame."""
        return self.decoder.init_state(batch, len(self.places))

    def encode_step(self, state: TransformerState, video: Tensor) -> tuple[TransformerState, Tensor]:
        """The next frames, and their latents."""
        self.check_video(video)
        x, state = self.encoder.step(self._patches(video), state, self.places, space_mask=self.encoder_mask)
        return state, self._latents(x)

    def decode_step(self, state: TransformerState, latents: Tensor) -> tuple[TransformerState, Tensor]:
        """The next latents, and their frames."""
        x, state = self.decoder.step(self._queries(latents), state, self.places, space_mask=self.decoder_mask)
        return state, self._paint(x)

    def _patches(self, video: Tensor) -> Tensor:
        """What the encoder starts from: [b, t, l + n, d]."""
        x = self.embed(patchify(video, self.patch_size))
        return torch.cat((self.latent_queries.to(x.dtype).expand(*x.shape[:2], -1, -1), x), dim=2)

    def _mask(self, tokens: Tensor) -> Tensor:
        """Hide a random share of each frame's patches."""
        share = self.mask_rate * torch.rand(*tokens.shape[:2], 1, device=tokens.device)
        hide = torch.rand(tokens.shape[:3], device=tokens.device) < share
        hide[:, :, : self.tokens_per_frame] = False
        return torch.where(hide[..., None], self.hidden.to(tokens.dtype), tokens)

    def _latents(self, x: Tensor) -> Tensor:
        z = self.squeeze(x[:, :, : self.tokens_per_frame]).tanh().unflatten(2, self.grid)
        return (z - self.mean) / self.std

    def _queries(self, latents: Tensor) -> Tensor:
        """What the decoder starts from: [b, t, l + n, d]."""
        x = self.unsqueeze((latents * self.std + self.mean).flatten(2, 3))
        return torch.cat((x, self.patch_queries.to(x.dtype).expand(*x.shape[:2], -1, -1)), dim=2)

    def _paint(self, x: Tensor) -> Tensor:
        return unpatchify(self.paint(x[:, :, self.tokens_per_frame :]), self.patch_size, self.patch_rows)
