"""The predictor of V-JEPA: what the target encoder would say of tokens that the encoder has not seen.

A narrow vision transformer over the context's features and mask tokens at the targets' places
(arXiv 2404.08471, section 3.1).

Legend: b batch, k context tokens, m target tokens, d width, e the encoder's width.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vwm.nn.patches import patch_grid
from vwm.vjepa.block import NORM_EPS, Block, MlpKind, initialise
from vwm.vjepa.positions import Grid, Kind, Positions


class MaskedPredictor(ModelMixin, ConfigMixin):
    """Predicts features of masked tokens.

    Args:
        encoder_width: e.
        image_size, frames, tubelet, patch_size: the encoder's.
        width: d.
        depth: layers.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forwards over d.
        mlp: ``"gelu"`` or ``"swiglu"``.
        positions, tiled_rope, uniform_power: see ``VideoEncoder``.
        mask_tokens: how many there are to choose from, one for each kind of mask.
    """

    @register_to_config
    def __init__(
        self,
        encoder_width: int = 192,
        image_size: tuple[int, int] = (64, 64),
        frames: int = 16,
        tubelet: int = 2,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp: MlpKind = "gelu",
        positions: Kind = "rope",
        tiled_rope: bool = False,
        uniform_power: bool = False,
        mask_tokens: int = 2,
    ) -> None:
        super().__init__()
        if mask_tokens < 1:
            raise ValueError(f"mask_tokens={mask_tokens} must be at least 1")
        self.frames, self.tubelet = frames, tubelet
        self.places = patch_grid((int(image_size[0]), int(image_size[1])), patch_size)
        self.positions = Positions(positions, width, heads, tiled_rope, uniform_power)
        self.checkpointing = False
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, encoder_width)
        initialise(self, self.blocks)
        self.mask_embed = nn.Parameter(torch.zeros(mask_tokens, width))

    def forward(
        self, context: Tensor, keep: Tensor, targets: Tensor, mask_token: int = 0, frames: int | None = None
    ) -> Tensor:
        """What the target tokens' features would be.

        Tokens need no order among themselves: attention knows them by their positions alone.

        Args:
            context: [b, k, e], the encoder's features of the tokens that it has seen.
            keep: int64 [b, k], their numbers.
            targets: int64 [b, m], the numbers of the tokens to predict.
            mask_token: which mask token stands at their places.
            frames: the clip's length, where it is not the config's.

        Returns:
            [b, m, e], in the order of ``targets``.

        Raises:
            ValueError: there is no such mask token.
        """
        if not 0 <= mask_token < len(self.mask_embed):
            raise ValueError(f"mask_token={mask_token} must be 0..{len(self.mask_embed) - 1}")
        numbers = torch.cat((keep, targets), dim=1)
        context = self.embed(context)
        masked = self.mask_embed[mask_token].to(context.dtype).expand(*targets.shape, -1)
        x = torch.cat((context, masked), dim=1)
        grid = self.grid(frames)
        added = self.positions.added(grid, x, numbers)
        x = x if added is None else x + added
        rotary = self.positions.rotary(grid, x, numbers)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, rotary, use_reentrant=False)
            else:
                x = block(x, rotary)
        return self.proj(self.norm(x[:, keep.shape[1] :]))

    def grid(self, frames: int | None = None) -> Grid:
        """(t, h, w) of a clip's tokens; by default of one as long as the config says."""
        return (-(-(self.frames if frames is None else frames) // self.tubelet), *self.places)
