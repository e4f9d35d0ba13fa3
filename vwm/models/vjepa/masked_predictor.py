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

from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType, TokenGrid
from vwm.models.vjepa.vit_block import VIT_NORM_EPS, MLPType, ViTBlock, init_vit_weights
from vwm.nn.linear import OneDNNLinear
from vwm.nn.pixels import patch_grid


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
        mask_token: the one that is used where the caller names none.
        levels: how many of the encoder's levels the context holds and the prediction is of, one after the other
            (V-JEPA 2.1, arXiv 2603.14482).
        output_width: width of a level of what is predicted, where it is not e.
        modalities: tokens have a vector that says whether of an image or a video they are (V-JEPA 2.1).
        predict_context: the context's tokens are predicted too, by ``dense`` (V-JEPA 2.1).
        rope_spread: see ``VideoEncoder``.
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
        mlp: MLPType = "gelu",
        positions: PositionEncodingType = "rope",
        tiled_rope: bool = False,
        uniform_power: bool = False,
        mask_tokens: int = 2,
        mask_token: int = 0,
        levels: int = 1,
        output_width: int | None = None,
        modalities: bool = False,
        predict_context: bool = False,
        rope_spread: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mask_token < mask_tokens:
            raise ValueError(f"mask_token={mask_token} must be one of mask_tokens={mask_tokens}, from 0")
        self.frames, self.tubelet = frames, tubelet
        self.places = patch_grid((int(image_size[0]), int(image_size[1])), patch_size)
        spread = None if rope_spread is None else (int(rope_spread[0]), int(rope_spread[1]))
        self.positions = PositionEncoding(positions, width, heads, tiled_rope, uniform_power, spread)
        self.checkpointing = False
        self.embed: nn.Module = OneDNNLinear(encoder_width, width)
        if levels > 1:
            between = nn.SiLU() if mlp == "swiglu" else nn.GELU()
            first = OneDNNLinear(levels * encoder_width, encoder_width)
            self.embed = nn.Sequential(first, between, OneDNNLinear(encoder_width, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=VIT_NORM_EPS)
        out = levels * (encoder_width if output_width is None else output_width)
        self.proj = OneDNNLinear(width, out)
        self.proj_context = OneDNNLinear(width, out) if predict_context else None
        if modalities:
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        init_vit_weights(self, self.blocks)
        self.mask_embed = nn.Parameter(torch.zeros(mask_tokens, width))

    def forward(
        self,
        context: Tensor,
        keep: Tensor,
        targets: Tensor,
        mask_token: int | None = None,
        frames: int | None = None,
    ) -> Tensor:
        """What the target tokens' features would be.

        Args:
            context: [b, k, e], the encoder's features of the tokens that it has seen; of several levels, one after the
                other, [b, k, levels * e].
            keep: int64 [b, k], their numbers.
            targets: int64 [b, m], the numbers of the tokens to predict.
            mask_token: which mask token stands at their places; by default the config's.
            frames: the clip's length, where it is not the config's.

        Returns:
            [b, m, e], in the order of ``targets``; [b, m, levels * output_width] where the config has these.

        Raises:
            ValueError: there is no such mask token.
        """
        x = self._layers(context, keep, targets, mask_token, frames)
        return self.proj(self.norm(x[:, keep.shape[1] :]))

    def dense(
        self,
        context: Tensor,
        keep: Tensor,
        targets: Tensor,
        mask_token: int | None = None,
        frames: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, and beside the targets' features the context's own: [b, m, ...] and [b, k, ...].

        Raises:
            ValueError: a predictor with ``predict_context=False``; there is no such mask token.
        """
        if self.proj_context is None:
            raise ValueError("a predictor with predict_context=False predicts the targets alone: call it")
        x = self.norm(self._layers(context, keep, targets, mask_token, frames))
        k = keep.shape[1]
        return self.proj(x[:, k:]), self.proj_context(x[:, :k])

    def grid(self, frames: int | None = None) -> TokenGrid:
        """(t, h, w) of a clip's tokens; by default of one as long as the config says."""
        return (-(-(self.frames if frames is None else frames) // self.tubelet), *self.places)

    def _layers(
        self, context: Tensor, keep: Tensor, targets: Tensor, mask_token: int | None, frames: int | None
    ) -> Tensor:
        """[b, k + m, d]. Tokens need no order among themselves: attention knows them by their positions alone."""
        mask_token = self.config.mask_token if mask_token is None else mask_token
        if not 0 <= mask_token < len(self.mask_embed):
            raise ValueError(f"mask_token={mask_token} must be 0..{len(self.mask_embed) - 1}")
        frames = self.frames if frames is None else frames
        numbers = torch.cat((keep, targets), dim=1)
        context = self.embed(context)
        masked = self.mask_embed[mask_token].to(context.dtype).expand(*targets.shape, -1)
        x = torch.cat((context, masked), dim=1)
        if self.config.modalities:
            x = x + (self.img_mod_embed if frames == 1 else self.video_mod_embed)
        added = self.positions.added(self.grid(frames), x, numbers)
        x = x if added is None else x + added
        rotary = self.positions.rotary(self.grid(frames), x, numbers)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, rotary, use_reentrant=False)
            else:
                x = block(x, rotary)
        return x
