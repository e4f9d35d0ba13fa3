"""The video encoder of V-JEPA: a vision transformer over tubelets, which may see some of them only.

V-JEPA (arXiv 2404.08471, section 3.2), V-JEPA 2 (arXiv 2506.09985, section 2.1) and 2.1 (arXiv 2603.14482).

Legend: b batch, t time in tubelets, h w in patches, n = t h w tokens, k tokens that are seen, d width, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vwm.models.vjepa.position_encoding import PositionEncoding, PositionEncodingType, RotaryTables, TokenGrid
from vwm.models.vjepa.vit_block import VIT_NORM_EPS, MLPType, ViTBlock, init_vit_weights
from vwm.nn.linear import onednn_linear
from vwm.nn.pixels import patch_grid


class TubeletEmbedding(nn.Module):
    """The tubelets' linear embedding; its weight has the shape of the published convolution's."""

    def __init__(self, tubelet: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.tubelet = tubelet
        size = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(3, width, size, stride=size)

    def forward(self, patches: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Pixels [..., 3 * tubelet * p * p] -> [..., d], of channels scaled and shifted first where [3] are given."""
        weight, bias = self.proj.weight, self.proj.bias
        assert bias is not None
        if scale is not None and shift is not None:  # of the weights, which are fewer than the pixels
            bias = bias + weight.sum(dim=(2, 3, 4)) @ shift
            weight = weight * scale[:, None, None, None]
        return onednn_linear(patches.to(weight.dtype), weight.flatten(1), bias)


class VideoEncoder(ModelMixin, ConfigMixin):
    """A vision transformer over a clip's tubelets.

    Args:
        image_size: (height, width) of the frames.
        frames: clip length. Sines and cosines stand for as many frames at most; with rope any clip length works.
        tubelet: frames that a token spans.
        patch_size: p, side of the square that a token spans.
        width: d.
        depth: layers.
        heads: attention heads.
        mlp_ratio: hidden width of the feed-forwards over d.
        mlp: ``"gelu"`` or ``"swiglu"``.
        positions: ``"rope"`` (V-JEPA 2) or ``"sincos"`` (V-JEPA).
        tiled_rope: rope as the released V-JEPA 2 weights have it; see ``PositionEncoding``.
        uniform_power: of sincos; see ``PositionEncoding``.
        pixel_mean, pixel_std: of each colour, of pixels between 0 and 1: what the patch embedding sees is
            (pixel - mean) / std. The default leaves vwm's pixels as they are; published weights want ImageNet's.
        modalities: images have a patch embedding of their own, and tokens a vector that says whether of an image or a
            video they are (V-JEPA 2.1).
        levels: layers before the last that have a final norm of their own, from 0 (V-JEPA 2.1); see ``layers``.
        rope_spread: of rope; see ``PositionEncoding.spread``.
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
        modalities: bool = False,
        levels: Sequence[int] = (),
        rope_spread: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.frames = (int(image_size[0]), int(image_size[1])), frames
        self.tubelet, self.patch_size, self.width = tubelet, patch_size, width
        self.places = patch_grid(self.image_size, patch_size)
        spread = None if rope_spread is None else (int(rope_spread[0]), int(rope_spread[1]))
        self.positions = PositionEncoding(positions, width, heads, tiled_rope, uniform_power, spread)
        self.grid()  # a ValueError where the tubelet does not divide the frames
        self.checkpointing = False
        self.patch_embed = TubeletEmbedding(tubelet, patch_size, width)
        self.blocks = nn.ModuleList(ViTBlock(width, heads, mlp_ratio, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=VIT_NORM_EPS)
        if not all(0 <= level < depth - 1 for level in levels):
            raise ValueError(f"levels={list(levels)} must be numbers of layers before the last, 0..{depth - 2}")
        self.feature_norms = nn.ModuleDict({str(level): nn.LayerNorm(width, eps=VIT_NORM_EPS) for level in levels})
        if modalities:
            self.patch_embed_img = TubeletEmbedding(1, patch_size, width)
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        init_vit_weights(self, self.blocks)

    def grid(self, frames: int | None = None) -> TokenGrid:
        """(t, h, w) of a clip's tokens; by default of one as long as the config says.

        Raises ValueError where the frames are no whole tubelets.
        """
        frames = self.frames if frames is None else frames
        if frames < 1 or (frames > 1 and frames % self.tubelet):
            raise ValueError(f"{frames} frames are no whole tubelets of {self.tubelet}; one frame alone would be")
        return (-(-frames // self.tubelet), *self.places)

    def tokens(self, frames: int | None = None) -> int:
        """n of a clip."""
        t, h, w = self.grid(frames)
        return t * h * w

    def forward(self, video: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features of a clip's tokens, or of those that are kept, which then see each other alone.

        An image is a clip of one frame: the frame is repeated to fill a tubelet (not so with ``modalities``).

        Args:
            video: float [b, frames, 3, height, width] in [-1, 1].
            keep: int64 [b, k], numbers of the tokens that are seen (along time first, then rows, then columns).

        Returns:
            [b, n, d] or [b, k, d], in the order of ``keep``.

        Raises:
            ValueError: frames of another size, no whole tubelets, or with sincos more frames than the config's.
        """
        x, rotary = self._embed(video, keep)
        for block in self.blocks:
            x = self._layer(block, x, rotary)
        return self.norm(x)

    def layers(self, video: Tensor, which: Sequence[int], keep: Tensor | None = None) -> list[Tensor]:
        """What some layers put out, for probes and targets of several levels.

        Args:
            video: see ``forward``.
            which: the layers' numbers, 0 to depth - 1, or from the end -1, -2, ...
            keep: see ``forward``.

        Returns:
            [b, n or k, d] each, in the order of ``which``; the last layer's after the final norm, as ``forward`` has
            it, those of ``levels`` after their own, and the others' as they are. Layers beyond the deepest that is
            asked for are not run.

        Raises:
            ValueError: there is no such layer.
        """
        depth = len(self.blocks)
        if not all(-depth <= number < depth for number in which):
            raise ValueError(f"which={list(which)} must be numbers of the {depth} layers, {-depth}..{depth - 1}")
        numbers = [number % depth for number in which]
        norms = {str(depth - 1): self.norm, **self.feature_norms}
        x, rotary = self._embed(video, keep)
        found = {}
        for number, block in enumerate(self.blocks[: max(numbers, default=-1) + 1]):
            x = self._layer(block, x, rotary)
            if number in numbers:
                found[number] = norms[str(number)](x) if str(number) in norms else x
        return [found[number] for number in numbers]

    def _layer(self, block: nn.Module, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, x, rotary, use_reentrant=False)
        return block(x, rotary)

    def _embed(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, RotaryTables | None]:
        if video.shape[2:] != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(f"video must be [b, frames, 3, {height}, {width}], got {list(video.shape)}")
        frames = video.shape[1]
        if self.positions.kind == "sincos" and frames > self.frames:
            raise ValueError(f"{frames} frames are more than the {self.frames} that sincos positions were trained on")
        grid = self.grid(frames)
        embed = self.patch_embed
        if frames == 1 and self.config.modalities:
            embed = self.patch_embed_img
        elif frames == 1:
            video = video.expand(-1, self.tubelet, -1, -1, -1)
        x = embed(_extract_tubelets(video, embed.tubelet, self.patch_size, keep), *self._normalisation())
        if self.config.modalities:
            x = x + (self.img_mod_embed if frames == 1 else self.video_mod_embed)
        added = self.positions.added(grid, x, keep)
        return x if added is None else x + added, self.positions.rotary(grid, x, keep)

    def _normalisation(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Scale and shift [3] of pixels in [-1, 1]; None where they change nothing."""
        mean, std = tuple(self.config.pixel_mean), tuple(self.config.pixel_std)
        if mean == std == (0.5, 0.5, 0.5):
            return None, None
        weight = self.patch_embed.proj.weight
        return _pixel_scale_shift(mean, std, weight.dtype, weight.device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # where validation is in it: a constant of inference could not be used in training
def _pixel_scale_shift(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    middle, spread = (torch.tensor(of, dtype=torch.float64, device=device) for of in (mean, std))
    return (0.5 / spread).to(dtype), ((0.5 - middle) / spread).to(dtype)


def _extract_tubelets(video: Tensor, tubelet: int, patch: int, keep: Tensor | None) -> Tensor:
    """Pixels of each token, [b, n or k, 3 * tubelet * p * p]; only those of kept tokens are copied."""
    b, t, h, w = len(video), video.shape[1] // tubelet, video.shape[3] // patch, video.shape[4] // patch
    cells = video.reshape(b, t, tubelet, 3, h, patch, w, patch).permute(0, 1, 4, 6, 3, 2, 5, 7)
    if keep is None:
        return cells.reshape(b, t * h * w, -1)
    clip = torch.arange(b, device=keep.device)[:, None]
    return cells[clip, keep // (h * w), keep // w % h, keep % w].flatten(2)
