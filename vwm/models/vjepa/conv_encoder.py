"""A small residual convolutional encoder, for small and simple frames that do not need a transformer."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vwm.core.network_base import ConfigMixin, ModelMixin, register_to_config


class ConvFrameEncoder(ModelMixin, ConfigMixin):
    """Encode each frame independently, with the interface of ``VideoEncoder`` with a tubelet of one frame.

    The layout is that of the IMPALA network (arXiv 1802.01561, figure 3), with strides instead of pooling.

    Args:
        image_size: (height, width) of the frames; each stage halves both.
        widths: channels of the stages; the last is the width of the features.
        blocks_per_stage: number of residual blocks per stage.

    Raises:
        ValueError: the stages do not halve the image size evenly.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        widths: list[int] = [16, 32, 32],  # noqa: B006
        blocks_per_stage: int = 1,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.width = widths[-1]
        stride = 2 ** len(widths)
        if any(side % stride for side in self.image_size):
            raise ValueError(
                f"{len(widths)} stages have a stride of {stride}, which must divide image_size={list(self.image_size)}"
            )
        self.spatial_grid = (self.image_size[0] // stride, self.image_size[1] // stride)
        layers: list[nn.Module] = []
        for in_width, width in zip([3, *widths], widths, strict=False):
            layers += [
                nn.Conv2d(in_width, width, 3, stride=2, padding=1),
                *(ConvResidualBlock(width) for _ in range(blocks_per_stage)),
            ]
        self.layers = nn.Sequential(*layers)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The part to compile and to recompute; see ``find_blocks``."""
        return (self.layers,)

    def forward(self, video: Tensor) -> Tensor:
        """float [b, t, 3, height, width] in [-1, 1] -> [b, t h w, d]. Raises ValueError for frames of another size."""
        if tuple(video.shape[2:]) != (3, *self.image_size):
            raise ValueError(
                f"video must be [b, t, 3, {', '.join(map(str, self.image_size))}], got {list(video.shape)}"
            )
        x = self.layers(video.flatten(0, 1).to(self.dtype))
        return rearrange(F.relu(x), "(b t) d h w -> b (t h w) d", b=len(video))


class ConvResidualBlock(nn.Module):
    """Residual block of two convolutions, initialized to the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d, h, w] -> [b, d, h, w]."""
        return x + self.second(F.relu(self.first(F.relu(x))))
