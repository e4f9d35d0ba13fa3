"""A small residual convolutional encoder, for frames so small and plain that a transformer's tokens would be waste."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class ConvFrameEncoder(ModelMixin, ConfigMixin):
    """Every frame by itself; what ``VideoEncoder`` gives with a tubelet of one frame.

    The layout is that of IMPALA's network (arXiv 1802.01561, figure 3), with strides in place of pooling.

    Args:
        image_size: (height, width) of the frames; each stage halves both.
        widths: channels of the stages; the last is the features' width.
        blocks: residual blocks a stage.

    Raises:
        ValueError: a size that the stages do not halve evenly.
    """

    @register_to_config
    def __init__(
        self,
        image_size: tuple[int, int] = (64, 64),
        widths: list[int] = [16, 32, 32],  # noqa: B006
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.image_size, self.width, self.checkpointing = (int(image_size[0]), int(image_size[1])), widths[-1], False
        shrink = 2 ** len(widths)
        if any(side % shrink for side in self.image_size):
            raise ValueError(f"{len(widths)} stages halve {shrink}-fold, which does not divide {list(self.image_size)}")
        self.places = (self.image_size[0] // shrink, self.image_size[1] // shrink)
        layers: list[nn.Module] = []
        for before, width in zip([3, *widths], widths, strict=False):
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1),
                *(ConvResidualBlock(width) for _ in range(blocks)),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, video: Tensor) -> Tensor:
        """float [b, t, 3, height, width] in [-1, 1] -> [b, t h w, d]. Raises ValueError for frames of another size."""
        if tuple(video.shape[2:]) != (3, *self.image_size):
            raise ValueError(
                f"video must be [b, t, 3, {', '.join(map(str, self.image_size))}], got {list(video.shape)}"
            )
        x = self.layers(video.flatten(0, 1).to(self.dtype))
        return rearrange(F.relu(x), "(b t) d h w -> b (t h w) d", b=len(video))


class ConvResidualBlock(nn.Module):
    """Two convolutions, which at first change nothing."""

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
