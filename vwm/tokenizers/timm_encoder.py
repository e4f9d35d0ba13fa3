"""Vision transformers of timm as encoders of frames: DINOv2 (arXiv 2304.07193), DINOv3 (arXiv 2508.10104), others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.core.components import ComponentError
from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config


class TimmEncoder(ModelMixin, ConfigMixin):
    """Encode each frame by a vision transformer of timm.

    Frames are resized to what the grid of patches needs, and normalized as the transformer was trained.

    Args:
        backbone: name of the model in timm, such as ``vit_small_patch14_dinov2`` or ``vit_small_patch16_dinov3``.
        image_size: (height, width) of the frames in pixels.
        grid: (h, w), number of patches.
        settings: other arguments of the model.

    Attributes:
        width: d, width of the features.
        spatial_grid: the grid.

    Raises:
        ValueError: timm has no such model, or it is no vision transformer.
    """

    @register_to_config
    def __init__(
        self,
        backbone: str = "vit_small_patch14_dinov2",
        image_size: tuple[int, int] = (64, 64),
        grid: tuple[int, int] = (8, 8),
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.spatial_grid = (int(grid[0]), int(grid[1]))
        network = _create(backbone, self.spatial_grid, settings)
        self.width = int(network.num_features)
        self.network = network
        # Not persistent, because they follow from the name of the model.
        self.register_buffer("mean", torch.tensor(network.pretrained_cfg["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(network.pretrained_cfg["std"])[:, None, None], persistent=False)

    @classmethod
    def from_file(
        cls,
        backbone: str,
        file: str | os.PathLike[str],
        image_size: tuple[int, int],
        grid: tuple[int, int],
        settings: dict[str, Any] | None = None,
    ) -> Self:
        """Read published weights, ``.safetensors`` or pickled ones (read without running code from them).

        Positions are resampled to the grid.

        Raises:
            FileNotFoundError: there is no such file.
            ComponentError: the file has other weights than the model.
        """
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no {file}: save the weights of timm's {backbone} there")
        encoder = cls(backbone=backbone, image_size=image_size, grid=grid, settings=settings)
        source = {"file": str(file), "url": "", "hf_hub_id": None, "custom_load": False}
        try:
            encoder.network = _create(
                backbone, encoder.spatial_grid, settings, pretrained=True, pretrained_cfg_overlay=source
            )
        except Exception as error:  # timm, torch and safetensors raise many types of errors for a wrong file
            raise ComponentError(f"{file}: no weights of timm's {backbone} ({error})") from error
        return encoder.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """Encode videos of one frame, float [n, 1, 3, H, W] in [-1, 1] -> [n, h w, d]."""
        if tuple(video.shape[1:]) != (1, 3, *self.image_size):
            raise ValueError(
                f"video must be [n, 1, 3, {self.image_size[0]}, {self.image_size[1]}], got {list(video.shape)}"
            )
        size = tuple(self.network.patch_embed.img_size)
        frames = (video[:, 0] + 1) / 2
        if size != self.image_size:
            frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False)
        tokens = self.network.forward_features((frames - self.mean) / self.std)
        return tokens[:, self.network.num_prefix_tokens :]


def _create(backbone: str, grid: tuple[int, int], settings: dict[str, Any] | None, **source: Any) -> Any:
    """Make a model for a grid of patches, with the weights of a source or without."""
    if not timm.is_model(backbone):
        raise ValueError(f"backbone={backbone!r}: timm has no such model")
    settings = settings or {}
    with torch.device("meta"):  # for its patch size only
        embed: Any = getattr(timm.create_model(backbone, **settings), "patch_embed", None)
    if not hasattr(embed, "patch_size"):
        raise ValueError(
            f"backbone={backbone!r} is no vision transformer with patches, such as vit_small_patch14_dinov2"
        )
    size = (grid[0] * int(embed.patch_size[0]), grid[1] * int(embed.patch_size[1]))
    return timm.create_model(backbone, num_classes=0, img_size=size, **settings, **source)
