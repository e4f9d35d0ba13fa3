"""The video encoder of V-JEPA: a vision transformer over all or some of the tubelets of a clip.

V-JEPA (arXiv 2404.08471, section 3.2), V-JEPA 2 (arXiv 2506.09985, section 2.1) and 2.1 (arXiv 2603.14482).

Legend: b batch, t time in tubelets, h w in patches, n = t h w tokens, k selected tokens, d width, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config
from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType, RotaryTables, TokenGrid
from vwm.models.vjepa.vit_block import VIT_NORM_EPS, MLPType, ViTBlock, init_vit_weights
from vwm.nn.linear import onednn_linear
from vwm.nn.pixels import patch_grid


class TubeletEmbedding(nn.Module):
    """Linear embedding of tubelets. Its weight has the shape of the published checkpoints' convolution."""

    def __init__(self, tubelet: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.tubelet = tubelet
        size = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(3, width, size, stride=size)

    def forward(self, patches: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Embed pixels [..., 3 * tubelet * p * p] -> [..., d]; scale and shift [3] apply to their channels first."""
        weight, bias = self.proj.weight, self.proj.bias
        assert bias is not None
        if scale is not None and shift is not None:  # applied to the weights, which are fewer than the pixels
            bias = bias + weight.sum(dim=(2, 3, 4)) @ shift
            weight = weight * scale[:, None, None, None]
        return onednn_linear(patches.to(weight.dtype), weight.flatten(1), bias)


class VideoEncoder(ModelMixin, ConfigMixin):
    """Vision transformer over the tubelets of a clip.

    Args:
        image_size: (height, width) of the frames.
        frames: clip length; with sincos positions the maximum length, with rope any length is possible.
        tubelet: number of frames that a token spans.
        patch_size: p, side of the square of pixels that a token spans.
        width: d.
        depth: number of layers.
        heads: number of attention heads.
        mlp_ratio: ratio of the hidden width of feed-forwards to d.
        mlp: ``"gelu"`` or ``"swiglu"``.
        positions: ``"rope"`` (V-JEPA 2) or ``"sincos"`` (V-JEPA).
        tiled_rope: frequencies of the released V-JEPA 2 weights; see ``PositionEncoding.tiled``.
        uniform_power: see ``PositionEncoding``.
        pixel_mean, pixel_std: mean and standard deviation of each color, for pixels in [0, 1]; the patch embedding
            receives (pixel - mean) / std. By default the pixels in [-1, 1] are not changed; published weights require
            the values of ImageNet.
        modality_embeddings: use a separate patch embedding for images, and add an embedding of the modality (image or
            video) to the tokens (V-JEPA 2.1).
        feature_layers: indices, from 0, of layers before the last whose features have their own final norm (V-JEPA
            2.1); see ``layer_features``.
        rope_reference_grid: see ``PositionEncoding.reference_grid``.

    Raises:
        ValueError: settings that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        frames: int = 16,
        tubelet: int = 2,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        mlp: MLPType = "gelu",
        positions: PositionEncodingType = "rope",
        tiled_rope: bool = False,
        uniform_power: bool = False,
        pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        modality_embeddings: bool = False,
        feature_layers: Sequence[int] = (),
        rope_reference_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.frames = frames
        self.tubelet = tubelet
        self.patch_size = patch_size
        self.width = width
        self.spatial_grid = patch_grid(self.image_size, patch_size)
        self.positions = PositionEncoding(
            kind=positions,
            width=width,
            heads=heads,
            tiled=tiled_rope,
            uniform_power=uniform_power,
            reference_grid=rope_reference_grid,
        )
        self.grid()  # raises ValueError unless the tubelet divides the frames
        self.patch_embed = TubeletEmbedding(tubelet, patch_size, width)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio=mlp_ratio, mlp=mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=VIT_NORM_EPS)
        if not all(0 <= layer < depth - 1 for layer in feature_layers):
            raise ValueError(
                f"feature_layers={list(feature_layers)} must be indices of layers before the last, 0..{depth - 2}"
            )
        self.feature_norms = nn.ModuleDict(
            {str(layer): nn.LayerNorm(width, eps=VIT_NORM_EPS) for layer in feature_layers}
        )
        if modality_embeddings:
            self.patch_embed_img = TubeletEmbedding(1, patch_size, width)
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        init_vit_weights(self, self.blocks)

    def grid(self, frames: int | None = None) -> TokenGrid:
        """Shape (t, h, w) of the tokens of a clip, by default with the length of the config.

        Raises:
            ValueError: ``frames`` is neither 1 nor a multiple of the tubelet.
        """
        frames = self.frames if frames is None else frames
        if frames < 1 or (frames > 1 and frames % self.tubelet):
            raise ValueError(f"{frames} frames must be 1 or a multiple of tubelet={self.tubelet}")
        return (-(-frames // self.tubelet), *self.spatial_grid)

    def num_tokens(self, frames: int | None = None) -> int:
        """Number of tokens of a clip, n."""
        t, h, w = self.grid(frames)
        return t * h * w

    def forward(self, video: Tensor, token_indices: Tensor | None = None) -> Tensor:
        """Encode all tokens of a clip, or selected tokens, which then attend only to each other.

        An image is a clip of one frame, which is repeated to fill a tubelet (unless there are ``modality_embeddings``).

        Args:
            video: float [b, frames, 3, height, width] in [-1, 1].
            token_indices: int64 [b, k], indices of the selected tokens, in the order (time, row, column).

        Returns:
            [b, n, d], or [b, k, d] in the order of ``token_indices``.

        Raises:
            ValueError: frames of another size, a number of frames that the tubelet does not divide, or more frames than
                in the config with sincos positions.
        """
        x, rotary = self._embed(video, token_indices)
        for block in self.blocks:
            x = block(x, rotary)
        return self.norm(x)

    def layer_features(
        self, video: Tensor, layer_indices: Sequence[int], token_indices: Tensor | None = None
    ) -> list[Tensor]:
        """Return the outputs of several layers, for probes and for targets of several layers.

        Args:
            video: see ``forward``.
            layer_indices: indices of the layers, from 0, or from -1 backwards.
            token_indices: see ``forward``.

        Returns:
            [b, n or k, d] for each of ``layer_indices``: after the final norm for the last layer, as in ``forward``;
            after their own norms for ``feature_layers``; without a norm for other layers.

        Raises:
            ValueError: there is no such layer.
        """
        depth = len(self.blocks)
        if not all(-depth <= index < depth for index in layer_indices):
            raise ValueError(
                f"layer_indices={list(layer_indices)} must be indices of the {depth} layers, {-depth}..{depth - 1}"
            )
        indices = [index % depth for index in layer_indices]
        norms = {str(depth - 1): self.norm, **self.feature_norms}
        x, rotary = self._embed(video, token_indices)
        features = {}
        for index, block in enumerate(self.blocks[: max(indices, default=-1) + 1]):
            x = block(x, rotary)
            if index in indices:
                features[index] = norms[str(index)](x) if str(index) in norms else x
        return [features[index] for index in indices]

    def _embed(self, video: Tensor, token_indices: Tensor | None) -> tuple[Tensor, RotaryTables | None]:
        if video.shape[2:] != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(f"video must be [b, frames, 3, {height}, {width}], got {list(video.shape)}")
        frames = video.shape[1]
        if self.positions.kind == "sincos" and frames > self.frames:
            raise ValueError(f"{frames} frames are more than the {self.frames} of sincos positions: use shorter clips")
        grid = self.grid(frames)
        embed = self.patch_embed
        if frames == 1 and self.config.modality_embeddings:
            embed = self.patch_embed_img
        elif frames == 1:
            video = video.expand(-1, self.tubelet, -1, -1, -1)
        tubelets = _extract_tubelets(video, embed.tubelet, self.patch_size, token_indices)
        x = embed(tubelets, *self._pixel_normalization())
        if self.config.modality_embeddings:
            x = x + (self.img_mod_embed if frames == 1 else self.video_mod_embed)
        rotary = self.positions.rotary_tables(grid, x, token_indices)
        position_embedding = self.positions.additive_embedding(grid, x, token_indices)
        return x if position_embedding is None else x + position_embedding, rotary

    def _pixel_normalization(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Scale and shift [3] of pixels in [-1, 1]; None for no change."""
        mean, std = tuple(self.config.pixel_mean), tuple(self.config.pixel_std)
        if mean == std == (0.5, 0.5, 0.5):
            return None, None
        weight = self.patch_embed.proj.weight
        return _pixel_scale_shift(mean, std, weight.dtype, weight.device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # tensors created in inference mode (validation) cannot be used in training
def _pixel_scale_shift(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    mean_tensor, std_tensor = (torch.tensor(values, dtype=torch.float64, device=device) for values in (mean, std))
    return (0.5 / std_tensor).to(dtype), ((0.5 - mean_tensor) / std_tensor).to(dtype)


def _extract_tubelets(video: Tensor, tubelet: int, patch: int, token_indices: Tensor | None) -> Tensor:
    """Pixels of each token, [b, n or k, 3 * tubelet * p * p]. Only the pixels of selected tokens are copied."""
    b, t, h, w = len(video), video.shape[1] // tubelet, video.shape[3] // patch, video.shape[4] // patch
    cells = video.reshape(b, t, tubelet, 3, h, patch, w, patch).permute(0, 1, 4, 6, 3, 2, 5, 7)
    if token_indices is None:
        return cells.reshape(b, t * h * w, -1)
    clips = torch.arange(b, device=token_indices.device)[:, None]
    time, row, column = token_indices // (h * w), token_indices // w % h, token_indices % w
    return cells[clips, time, row, column].flatten(2)
