"""Genie's video tokenizer (ST-ViViT, arXiv 2402.15391, section 2.1): space-time transformers around a codebook.

Causal in time on both sides, so that a frame's tokens do not depend on later frames and it can run frame by frame.

Legend: b batch, t time, H W pixels, h w the grid of patches, n = h*w tokens a frame, d width.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.quantize import Codebook, Quantizer
from vwm.nn.space_time import SpaceTimeTransformer, TransformerState


class SpaceTimeTokenizer(VideoTokenizer):
    """Video to discrete tokens and back.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: side of the square of pixels that one token stands for.
        codebook: a number of codes (VQ) or FSQ levels; see ``vwm.nn.quantize.Codebook``.
        width: of the transformers, d.
        depth: blocks in the encoder, and again in the decoder.
        heads: attention heads.
        window: frames that time attention spans.
        code_width: dimension of a VQ code.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 8,
        codebook: Codebook = [8, 5, 5, 5],  # noqa: B006 (read only; a list because configs are JSON)
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        window: int = 16,
        code_width: int = 32,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.patch_size = patch_size
        self.grid = patch_grid(self.image_size, patch_size)
        tokens, pixels = self.grid[0] * self.grid[1], 3 * patch_size**2
        self.embed = nn.Linear(pixels, width)
        self.encoder_places = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.encoder = SpaceTimeTransformer(width, depth, heads, window)
        self.quantizer = Quantizer(width, codebook, code_width)
        self.codebook_size = self.quantizer.size
        self.decoder_places = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.decoder = SpaceTimeTransformer(width, depth, heads, window)
        self.paint = nn.Linear(width, pixels)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Through the codebook and back, with a straight-through gradient: float [b, t, 3, H, W] in [-1, 1]."""
        codes, indices, commitment = self.quantizer(self.encoder(self._embed(video)))
        return TokenizerOutput(self._paint(self.decoder(codes + self.decoder_places)), self._grid(indices), commitment)

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> tokens int64 [b, t, h, w]."""
        return self._grid(self.quantizer(self.encoder(self._embed(video))).indices)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [b, t, h, w] -> float [b, t, 3, H, W]."""
        return self._paint(self.decoder(self._embed_tokens(tokens)))

    def init_encoder(self, batch: int) -> TransformerState:
        """The encoder's state before the first frame."""
        return self.encoder.init_state(batch, self.tokens_per_frame)

    def init_decoder(self, batch: int) -> TransformerState:
        """The decoder's state before the first frame."""
        return self.decoder.init_state(batch, self.tokens_per_frame)

    def encode_step(self, state: TransformerState, video: Tensor) -> tuple[TransformerState, Tensor]:
        """The next frames: state, float [b, t, 3, H, W] -> state, tokens [b, t, h, w]."""
        x, state = self.encoder.step(self._embed(video), state)
        return state, self._grid(self.quantizer(x).indices)

    def decode_step(self, state: TransformerState, tokens: Tensor) -> tuple[TransformerState, Tensor]:
        """The next frames: state, tokens [b, t, h, w] -> state, float [b, t, 3, H, W]."""
        x, state = self.decoder.step(self._embed_tokens(tokens), state)
        return state, self._paint(x)

    def _embed(self, video: Tensor) -> Tensor:
        self.check_video(video)
        return self.embed(patchify(video, self.patch_size)) + self.encoder_places

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.quantizer.lookup(tokens.flatten(2)).to(self.decoder_places.dtype) + self.decoder_places

    def _paint(self, x: Tensor) -> Tensor:
        return unpatchify(self.paint(x), self.patch_size, self.grid[0])

    def _grid(self, indices: Tensor) -> Tensor:
        return indices.unflatten(-1, self.grid)
