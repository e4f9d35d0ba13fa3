"""The autoencoder of Oasis: a vision transformer on each side of continuous latents, frame by frame."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vwm.core.network_base import register_to_config
from vwm.core.tokenizer import FrameTokenizer
from vwm.models.oasis.layers import LAYER_NORM_EPSILON, GELUPerceptron, PatchEmbedding, merge_heads, split_heads
from vwm.models.oasis.rotary import grid_angles, grid_frequencies, rotate


class OasisViTVAE(FrameTokenizer):
    """Encode frames to the mean of their posterior, one latent per patch; see ``VideoTokenizer``.

    The defaults are the published ViT-L/20, and the names of the weights are the published ones.

    Args:
        image_size: (H, W) in pixels, multiples of ``patch_size``.
        patch_size: side of a patch in pixels.
        channels: of the latents.
        width: of the transformers.
        heads: of their attention.
        encoder_depth, decoder_depth: their blocks.
        latent_scale: factor by which latents are scaled, to about unit standard deviation.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (360, 640),
        patch_size: int = 20,
        channels: int = 16,
        width: int = 1024,
        heads: int = 16,
        encoder_depth: int = 6,
        decoder_depth: int = 12,
        latent_scale: float = 0.07843137255,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        if any(side < 1 or side % patch_size for side in self.image_size):
            raise ValueError(f"image_size={self.image_size} must be multiples of patch_size={patch_size}")
        if width % (8 * heads):
            raise ValueError(f"width={width} must be a multiple of 8 heads={8 * heads}")
        self.grid = (self.image_size[0] // patch_size, self.image_size[1] // patch_size)
        self.channels = channels
        self.latent_scale = latent_scale
        self.patch_embed = PatchEmbedding(patch_size, 3, width)
        self.encoder = nn.ModuleList(OasisViTBlock(width, heads, self.grid) for _ in range(encoder_depth))
        self.enc_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.quant_conv = nn.Linear(width, 2 * channels)
        self.post_quant_conv = nn.Linear(channels, width)
        self.decoder = nn.ModuleList(OasisViTBlock(width, heads, self.grid) for _ in range(decoder_depth))
        self.dec_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.predictor = nn.Linear(width, 3 * patch_size**2)

    def encode(self, video: Tensor) -> Tensor:
        """Encode: float [b, t, 3, H, W] in [-1, 1] -> [b, t, h, w, c], the scaled mean of the posterior."""
        self.check_video(video)
        x = self.patch_embed(video.flatten(0, 1).to(self.dtype))
        for block in self.encoder:
            x = block(x)
        mean = self.quant_conv(self.enc_norm(x))[..., : self.channels]
        return (mean * self.latent_scale).unflatten(1, self.grid).unflatten(0, video.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode: float [b, t, h, w, c] -> [b, t, 3, H, W]."""
        z = latents.flatten(0, 1).flatten(1, 2).to(self.dtype)
        x = self.post_quant_conv(z / self.latent_scale)
        for block in self.decoder:
            x = block(x)
        patches, (h, _) = self.predictor(self.dec_norm(x)), self.grid
        images = rearrange(patches, "n (h w) (c p q) -> n c (h p) (w q)", h=h, c=3, p=self.image_size[0] // h)
        return images.unflatten(0, latents.shape[:2])


class OasisViTBlock(nn.Module):
    """A block of the autoencoder: attention of all patches with rotary places, and a perceptron, [n, h w, d].

    Args:
        width: d.
        heads: of the attention.
        grid: (h, w).
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = _GridAttention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = GELUPerceptron(width, ratio=4, approximate="none")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _GridAttention(nn.Module):
    angles: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # Half of the channels of a head are turned, a quarter for each axis.
        angles = grid_angles(grid_frequencies(width // heads // 4, highest=grid[0] * grid[1]), *grid)
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(rotate(q, self.angles), rotate(k, self.angles), v)))
