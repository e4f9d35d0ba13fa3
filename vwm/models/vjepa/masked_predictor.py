"""The predictor of V-JEPA: predicts the target encoder's features of masked tokens.

A narrow vision transformer over the features of the context and mask tokens at the positions of the targets (arXiv
2404.08471, section 3.1).

Legend: b batch, k context tokens, m target tokens, d width, e width of the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType, TokenGrid
from vwm.models.vjepa.vit_block import VIT_NORM_EPS, MLPType, ViTBlock, init_vit_weights
from vwm.nn.linear import OneDNNLinear
from vwm.nn.pixels import patch_grid


class MaskedPredictor(ModelMixin, ConfigMixin):
    """Predict features of masked tokens.

    Args:
        encoder_width: e.
        image_size, frames, tubelet, patch_size: as in the encoder.
        width: d.
        depth: number of layers.
        heads: number of attention heads.
        mlp_ratio: ratio of the hidden width of feed-forwards to d.
        mlp: ``"gelu"`` or ``"swiglu"``.
        positions, tiled_rope, uniform_power: see ``VideoEncoder``.
        num_mask_tokens: number of learned mask tokens, one for each kind of mask.
        mask_token_index: index of the default mask token.
        num_feature_layers: number of encoder layers whose concatenated features are the context and the targets (V-JEPA
            2.1, arXiv 2603.14482).
        output_width: width of the predicted features of each layer; None for e.
        modality_embeddings: add an embedding of the modality (image or video) to the tokens (V-JEPA 2.1).
        predict_context: also predict the context tokens, by ``predict_all`` (V-JEPA 2.1).
        rope_reference_grid: see ``VideoEncoder``.

    Raises:
        ValueError: there is no mask token ``mask_token_index``, or the settings do not fit each other.
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
        num_mask_tokens: int = 2,
        mask_token_index: int = 0,
        num_feature_layers: int = 1,
        output_width: int | None = None,
        modality_embeddings: bool = False,
        predict_context: bool = False,
        rope_reference_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mask_token_index < num_mask_tokens:
            raise ValueError(
                f"mask_token_index={mask_token_index} must be less than num_mask_tokens={num_mask_tokens}, from 0"
            )
        self.frames = frames
        self.tubelet = tubelet
        self.spatial_grid = patch_grid((int(image_size[0]), int(image_size[1])), patch_size)
        self.positions = PositionEncoding(
            kind=positions,
            width=width,
            heads=heads,
            tiled=tiled_rope,
            uniform_power=uniform_power,
            reference_grid=rope_reference_grid,
        )
        self.embed: nn.Module = OneDNNLinear(encoder_width, width)
        if num_feature_layers > 1:
            self.embed = nn.Sequential(
                OneDNNLinear(num_feature_layers * encoder_width, encoder_width),
                nn.SiLU() if mlp == "swiglu" else nn.GELU(),
                OneDNNLinear(encoder_width, width),
            )
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio=mlp_ratio, mlp=mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=VIT_NORM_EPS)
        total_width = num_feature_layers * (encoder_width if output_width is None else output_width)
        self.proj = OneDNNLinear(width, total_width)
        self.proj_context = OneDNNLinear(width, total_width) if predict_context else None
        if modality_embeddings:
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        init_vit_weights(self, self.blocks)
        self.mask_embed = nn.Parameter(torch.zeros(num_mask_tokens, width))

    def forward(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        mask_token_index: int | None = None,
        frames: int | None = None,
    ) -> Tensor:
        """Predict the features of target tokens.

        Args:
            context: [b, k, e], encoder features of the context tokens; with several feature layers their concatenation,
                [b, k, num_feature_layers * e].
            context_indices: int64 [b, k], indices of the context tokens.
            target_indices: int64 [b, m], indices of the tokens to predict.
            mask_token_index: index of the mask token; None for that of the config.
            frames: length of the clip; None for that of the config.

        Returns:
            [b, m, e], or [b, m, num_feature_layers * output_width], in the order of ``target_indices``.

        Raises:
            ValueError: there is no such mask token.
        """
        x = self._run_blocks(context, context_indices, target_indices, mask_token_index, frames)
        return self.proj(self.norm(x[:, context_indices.shape[1] :]))

    def predict_all(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        mask_token_index: int | None = None,
        frames: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, and also predict the context: [b, m, ...] and [b, k, ...].

        Raises:
            ValueError: ``predict_context`` is False, or there is no such mask token.
        """
        if self.proj_context is None:
            raise ValueError("this predictor has predict_context=False and predicts targets only: call it instead")
        x = self.norm(self._run_blocks(context, context_indices, target_indices, mask_token_index, frames))
        k = context_indices.shape[1]
        return self.proj(x[:, k:]), self.proj_context(x[:, :k])

    def grid(self, frames: int | None = None) -> TokenGrid:
        """Shape (t, h, w) of the tokens of a clip, by default with the length of the config."""
        return (-(-(self.frames if frames is None else frames) // self.tubelet), *self.spatial_grid)

    def _run_blocks(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        mask_token_index: int | None,
        frames: int | None,
    ) -> Tensor:
        """[b, k + m, d]. The order of the tokens does not matter, because attention uses their positions only."""
        index = self.config.mask_token_index if mask_token_index is None else mask_token_index
        if not 0 <= index < len(self.mask_embed):
            raise ValueError(f"mask_token_index={index} must be 0..{len(self.mask_embed) - 1}")
        frames = self.frames if frames is None else frames
        token_indices = torch.cat((context_indices, target_indices), dim=1)
        context = self.embed(context)
        mask_tokens = self.mask_embed[index].to(context.dtype).expand(*target_indices.shape, -1)
        x = torch.cat((context, mask_tokens), dim=1)
        if self.config.modality_embeddings:
            x = x + (self.img_mod_embed if frames == 1 else self.video_mod_embed)
        position_embedding = self.positions.additive_embedding(self.grid(frames), x, token_indices)
        x = x if position_embedding is None else x + position_embedding
        rotary = self.positions.rotary_tables(self.grid(frames), x, token_indices)
        for block in self.blocks:
            x = block(x, rotary)
        return x
