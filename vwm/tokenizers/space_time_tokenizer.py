"""Genie's video tokenizer (ST-ViViT, arXiv 2402.15391, section 2.1): space-time transformers around a codebook.

Encoder and decoder are causal in time, so that the tokens of a frame do not depend on later frames and streaming is
possible.

Legend: b batch, t time, H W pixels, h w grid of patches, n = h*w tokens per frame, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import TokenizerOutput, VideoTokenizer
from vwm.nn.pixels import patch_grid, patchify, unpatchify
from vwm.nn.quantize import Codebook, Quantizer
from vwm.nn.space_time import SpaceTimeTransformer, TransformerState


class SpaceTimeTokenizer(VideoTokenizer):
    """Tokenizer with discrete tokens.

    Args:
        image_size: (height, width) of a frame in pixels.
        patch_size: side of the square of pixels that forms one token.
        codebook: a number of codes (VQ) or FSQ levels; see ``vwm.nn.quantize.Codebook``.
        width: d, width of the transformers.
        depth: number of blocks in the encoder, and in the decoder.
        heads: number of attention heads.
        window: number of frames that temporal attention spans.
        code_width: dimension of a VQ code.

    Raises:
        ValueError: the patches do not divide the frame.
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
        tokens = self.tokens_per_frame
        patch_values = 3 * patch_size**2
        self.embed = nn.Linear(patch_values, width)
        self.encoder_places = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))
        self.encoder = SpaceTimeTransformer(width=width, depth=depth, heads=heads, window=window)
        self.quantizer = Quantizer(width, codebook, code_width)
        self.codebook_size = self.quantizer.size
        self.decoder_places = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))
        self.decoder = SpaceTimeTransformer(width=width, depth=depth, heads=heads, window=window)
        self.paint = nn.Linear(width, patch_values)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """Encode and decode float [b, t, 3, H, W] in [-1, 1], with a straight-through gradient."""
        codes, indices, commitment = self.quantizer(self.encoder(self._embed(video)))
        return TokenizerOutput(
            self._decode_patches(self.decoder(codes + self.decoder_places)), self._grid(indices), commitment
        )

    def encode(self, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] -> tokens int64 [b, t, h, w]."""
        return self._grid(self.quantizer(self.encoder(self._embed(video))).indices)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [b, t, h, w] -> float [b, t, 3, H, W]."""
        return self._decode_patches(self.decoder(self._embed_tokens(tokens)))

    def init_encoder(self, batch: int) -> TransformerState:
        """Return the state of the encoder before the first frame."""
        return self.encoder.init_state(batch, self.tokens_per_frame)

    def init_decoder(self, batch: int) -> TransformerState:
        """Return the state of the decoder before the first frame."""
        return self.decoder.init_state(batch, self.tokens_per_frame)

    def encode_step(self, state: TransformerState, video: Tensor) -> tuple[TransformerState, Tensor]:
        """Encode the next frames: state, float [b, t, 3, H, W] -> state, tokens [b, t, h, w]."""
        x, state = self.encoder.step(self._embed(video), state)
        return state, self._grid(self.quantizer(x).indices)

    def decode_step(self, state: TransformerState, tokens: Tensor) -> tuple[TransformerState, Tensor]:
        """Decode the next frames: state, tokens [b, t, h, w] -> state, float [b, t, 3, H, W]."""
        x, state = self.decoder.step(self._embed_tokens(tokens), state)
        return state, self._decode_patches(x)

    def _embed(self, video: Tensor) -> Tensor:
        self.check_video(video)
        return self.embed(patchify(video, self.patch_size)) + self.encoder_places

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.quantizer.lookup(tokens.flatten(2)).to(self.decoder_places.dtype) + self.decoder_places

    def _decode_patches(self, x: Tensor) -> Tensor:
        return unpatchify(self.paint(x), self.patch_size, self.grid[0])

    def _grid(self, indices: Tensor) -> Tensor:
        return indices.unflatten(-1, self.grid)
