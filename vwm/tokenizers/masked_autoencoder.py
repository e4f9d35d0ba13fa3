"""The causal tokenizer of Dreamer 4 (arXiv 2509.24527, section 3.1): a masked autoencoder with latent tokens.

In each frame, learned latent tokens attend to the patches. Only they pass through a narrow bottleneck, and the decoder
reconstructs the patches from them. In training, a random share of the patches of each frame is masked, which gives
latents that are easier to predict for a dynamics model (MAE: arXiv 2111.06377).

Legend: b batch, t time, H W pixels, n patches, h w the grid of latents, l = h*w, c channels of a latent, d width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.clip_draws import draw_uniform
from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.space_time import TransformerState
from vwm.nn.video_transformer import VideoTransformer, grid_coordinates


class MaskedAutoencoderTokenizer(VideoTokenizer):
    """Tokenizer with continuous latents between -1 and 1, before normalization.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: side of the square of pixels that forms one patch token.
        latent_grid: (h, w), shape of the latents of a frame. The grid determines their positions only; each latent
            attends to all patches. (l, 1) is also valid.
        latent_channels: c.
        max_mask_rate: upper bound of the mask rate in training; the rate of each frame is uniform in
            [0, max_mask_rate].
        width: d, width of the transformers.
        depth: number of layers in the encoder, and in the decoder.
        heads: number of attention heads.
        window: number of frames that temporal attention spans.
        kv_heads, time_every, soft_cap: see ``VideoTransformer``.
        latents_mean, latents_std: one value per channel, by which ``encode`` normalizes latents
            (``vwm.tokenizers.latent_statistics`` measures them); by default 0 and 1.

    Raises:
        ValueError: ``max_mask_rate`` is not in [0, 1), or the patches do not divide the frame.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 8,
        latent_grid: tuple[int, int] = (4, 4),
        latent_channels: int = 16,
        max_mask_rate: float = 0.9,
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
        if not 0 <= max_mask_rate < 1:
            raise ValueError(f"max_mask_rate={max_mask_rate} must be at least 0 and less than 1")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size = patch_size
        self.max_mask_rate = max_mask_rate
        rows, columns = patch_grid(self.image_size, patch_size)
        self.patch_rows = rows
        self.grid = (int(latent_grid[0]), int(latent_grid[1]))
        self.channels = latent_channels
        latents = self.tokens_per_frame
        patch_values = 3 * patch_size**2

        make_transformer = partial(
            VideoTransformer,
            width=width,
            depth=depth,
            heads=heads,
            window=window,
            kv_heads=kv_heads,
            time_every=time_every,
            soft_cap=soft_cap,
        )
        self.embed = nn.Linear(patch_values, width)
        self.hidden = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.latent_queries = nn.Parameter(torch.empty(latents, width).normal_(std=0.02))
        self.encoder = make_transformer()
        self.squeeze = nn.Linear(width, latent_channels)
        self.unsqueeze = nn.Linear(latent_channels, width)
        self.patch_queries = nn.Parameter(torch.empty(rows * columns, width).normal_(std=0.02))
        self.decoder = make_transformer()
        self.paint = nn.Linear(width, patch_values)

        self.register_buffer("coordinates", _token_coordinates(self.grid, (rows, columns)), persistent=False)
        is_latent = torch.arange(latents + rows * columns) < latents
        # In the encoder, latents attend to all tokens and patches only to patches. In the decoder, patches attend to
        # all tokens and latents only to latents. Information about patches therefore passes through the latents.
        self.register_buffer("encoder_mask", is_latent[:, None] | ~is_latent[None, :], persistent=False)
        self.register_buffer("decoder_mask", ~is_latent[:, None] | is_latent[None, :], persistent=False)
        self.register_latent_statistics(latent_channels, latents_mean, latents_std)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1]. In training mode, some patches are masked."""
        self.check_video(video)
        tokens = self._mask(self._encoder_tokens(video)) if self.training else self._encoder_tokens(video)
        latents = self._latents(self.encoder(tokens, self.coordinates, space_mask=self.encoder_mask))
        return TokenizerOutput(self.decode(latents), latents, video.new_zeros(()))

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> float [b, t, h, w, c]."""
        self.check_video(video)
        return self._latents(self.encoder(self._encoder_tokens(video), self.coordinates, space_mask=self.encoder_mask))

    def decode(self, latents: Tensor) -> Tensor:
        """float [b, t, h, w, c] -> float [b, t, 3, H, W]."""
        return self._decode_patches(
            self.decoder(self._decoder_tokens(latents), self.coordinates, space_mask=self.decoder_mask)
        )

    def init_encoder(self, batch: int) -> TransformerState:
        """Return the state of the encoder before the first frame."""
        return self.encoder.init_state(batch, len(self.coordinates))

    def init_decoder(self, batch: int) -> TransformerState:
        """Return the state of the decoder before the first frame."""
        return self.decoder.init_state(batch, len(self.coordinates))

    def encode_step(self, state: TransformerState, video: Tensor) -> tuple[TransformerState, Tensor]:
        """Encode the next frames; return the state and their latents."""
        self.check_video(video)
        x, state = self.encoder.step(self._encoder_tokens(video), state, self.coordinates, space_mask=self.encoder_mask)
        return state, self._latents(x)

    def decode_step(self, state: TransformerState, latents: Tensor) -> tuple[TransformerState, Tensor]:
        """Decode the next latents; return the state and their frames."""
        x, state = self.decoder.step(
            self._decoder_tokens(latents), state, self.coordinates, space_mask=self.decoder_mask
        )
        return state, self._decode_patches(x)

    def _encoder_tokens(self, video: Tensor) -> Tensor:
        """Latent queries and embedded patches, the input of the encoder: [b, t, l + n, d]."""
        x = self.embed(patchify(video, self.patch_size))
        return torch.cat((self.latent_queries.to(x.dtype).expand(*x.shape[:2], -1, -1), x), dim=2)

    def _mask(self, tokens: Tensor) -> Tensor:
        """Replace a random share of the patches of each frame by the mask token."""
        rate = self.max_mask_rate * draw_uniform((*tokens.shape[:2], 1), tokens.device)
        mask = draw_uniform(tokens.shape[:3], tokens.device) < rate
        mask[:, :, : self.tokens_per_frame] = False
        return torch.where(mask[..., None], self.hidden.to(tokens.dtype), tokens)

    def _latents(self, x: Tensor) -> Tensor:
        z = self.squeeze(x[:, :, : self.tokens_per_frame]).tanh().unflatten(2, self.grid)
        return (z - self.mean) / self.std

    def _decoder_tokens(self, latents: Tensor) -> Tensor:
        """Embedded latents and patch queries, the input of the decoder: [b, t, l + n, d]."""
        x = self.unsqueeze((latents * self.std + self.mean).flatten(2, 3))
        return torch.cat((x, self.patch_queries.to(x.dtype).expand(*x.shape[:2], -1, -1)), dim=2)

    def _decode_patches(self, x: Tensor) -> Tensor:
        return unpatchify(self.paint(x[:, :, self.tokens_per_frame :]), self.patch_size, self.patch_rows)


def _token_coordinates(latent_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Coordinates of latents and patches in units of patches, float [l + n, 2]; latents are evenly spaced."""
    spacing = torch.tensor([grid[0] / latent_grid[0], grid[1] / latent_grid[1]])
    latent_coordinates = (grid_coordinates(*latent_grid) + 0.5) * spacing - 0.5
    return torch.cat((latent_coordinates, grid_coordinates(*grid)))
