"""The tokenizer of Dreamer 4 in PyTorch: a transformer from patches to a few latent tokens, and one back."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import FrameTokenizer
from vwm.models.dreamer4.block_causal import BlockCausalTransformer, TimeAttention, add_positions


class Dreamer4Tokenizer(FrameTokenizer):
    """Encode each frame to latent tokens in (-1, 1); see ``VideoTokenizer``. The grid is one row of tokens.

    The networks could attend to earlier frames of a clip. As in the authors' player, each frame is one of its own.
    The defaults are those of the first generation; the names of the weights are the published ones.

    Args:
        image_size: (H, W) in pixels, multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        latents: number of latent tokens.
        channels: of a latent token.
        width: of the transformers.
        heads: of their attention.
        depth: layers of each.
        hidden: of their perceptrons.
        time_every: which layers have weights for attention in time.
        rotary: second generation: see ``BlockCausalTransformer``.
        scaled_positions: see ``add_positions``.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (128, 128),
        patch_size: int = 4,
        latents: int = 16,
        channels: int = 32,
        width: int = 256,
        heads: int = 4,
        depth: int = 8,
        hidden: int = 1024,
        time_every: int = 1,
        rotary: bool = False,
        scaled_positions: bool = True,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        if any(side < 1 or side % patch_size for side in self.image_size):
            raise ValueError(f"image_size={self.image_size} must be multiples of patch_size={patch_size}")
        self.grid = (1, latents)
        self.channels = channels
        self.patch_size = patch_size
        self.rotary = rotary
        self.scaled_positions = scaled_positions
        patches = self.image_size[0] * self.image_size[1] // patch_size**2
        settings = (width, heads, depth, hidden, time_every, rotary, latents)
        self.encoder = _Encoder(3 * patch_size**2, latents, channels, width, BlockCausalTransformer(*settings))
        self.decoder = _Decoder(patches, 3 * patch_size**2, channels, width, BlockCausalTransformer(*settings))

    def encode(self, video: Tensor) -> Tensor:
        """Encode: float [b, t, 3, H, W] in [-1, 1] -> [b, t, 1, n, c]."""
        self.check_video(video)
        p = self.patch_size
        patches = rearrange((video.to(self.dtype) + 1) / 2, "b t c (h p) (w q) -> (b t) 1 (h w) (c p q)", p=p, q=p)
        projected = self.encoder.patch_proj(patches)
        tokens = torch.cat((self.encoder.latents.expand(len(patches), 1, -1, -1), projected), dim=2)
        mask = self._attention("patches", tokens)
        encoded = self._transform(self.encoder.transformer, tokens, mask)[:, :, : self.grid[1]]
        return torch.tanh(self.encoder.bottleneck_proj(encoded)).unflatten(0, video.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode: float [b, t, 1, n, c] -> [b, t, 3, H, W]."""
        projected = self.decoder.up_proj(latents.to(self.dtype).flatten(0, 1))
        known = projected if self.rotary else torch.tanh(projected)
        tokens = torch.cat((known, self.decoder.patch_queries.expand(len(known), 1, -1, -1)), dim=2)
        mask = self._attention("latents", tokens)
        decoded = self._transform(self.decoder.transformer, tokens, mask)[:, 0, self.grid[1] :]
        patches, p = torch.sigmoid(self.decoder.patch_head(decoded)), self.patch_size
        images = rearrange(patches, "n (h w) (c p q) -> n c (h p) (w q)", h=self.image_size[0] // p, c=3, p=p)
        return images.unflatten(0, latents.shape[:2]) * 2 - 1

    def _transform(self, transformer: BlockCausalTransformer, tokens: Tensor, space_mask: Tensor) -> Tensor:
        """Process single frames [b, 1, n, d]."""
        positions = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
        itself = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=tokens.device)
        if not self.rotary:
            tokens = add_positions(tokens, positions, self.scaled_positions)
        return transformer(tokens, space_mask, TimeAttention(positions, itself))[0]

    def _attention(self, hidden_from: str, tokens: Tensor) -> Tensor:
        """bool [n, n]: latents attend to patches in the encoder, and patches to latents in the decoder, not back."""
        is_latent = torch.arange(tokens.shape[2], device=tokens.device) < self.grid[1]
        same = is_latent[:, None] == is_latent
        return same | (is_latent[:, None] if hidden_from == "patches" else is_latent)


class _Encoder(nn.Module):
    def __init__(
        self, values: int, latents: int, channels: int, width: int, transformer: BlockCausalTransformer
    ) -> None:
        super().__init__()
        self.patch_proj = nn.Linear(values, width)
        self.bottleneck_proj = nn.Linear(width, channels)
        self.transformer = transformer
        self.mae = nn.ParameterDict({"mask_token": torch.randn(width) * 0.02})  # takes the place of patches in training
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.02)


class _Decoder(nn.Module):
    def __init__(
        self, patches: int, values: int, channels: int, width: int, transformer: BlockCausalTransformer
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(channels, width)
        self.patch_queries = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.patch_head = nn.Linear(width, values)
        self.transformer = transformer
