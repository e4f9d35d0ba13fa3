"""Features of clips for probing: the interface that each family implements for its own networks.

Legend: b batch, t time, H W pixels, n tokens of a clip, d width.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from vwm.core.frames import frames_to_float
from vwm.core.network_base import ModelMixin
from vwm.core.simulator import SimulatorSpec


class FeatureExtractor(ABC):
    """Features of frozen networks, as tokens of a clip.

    Its only input is the frames of a clip: simulators with labeled actions treat the actions as unknown, because the
    controls of a probe have no actions either.

    Args:
        networks: the frozen networks that compute the features.
        layer: the layer to read, from 0 or, counted from the end, -1; None for the class's own default.

    Attributes:
        image_size: (H, W) of the frames; None where any size is accepted.
        frames: a clip length that suits the networks.
        depth: number of layers to choose from; 0 where there is one kind of feature only.
        layer: the layer's number, from 0; None where there is nothing to choose, or for the network's own output.

    Raises:
        ValueError: there is no such layer.
    """

    image_size: tuple[int, int] | None = None
    frames: int = 4

    def __init__(self, networks: dict[str, Any], depth: int = 0, layer: int | None = None) -> None:
        self.networks = networks
        self.depth = depth
        if layer is not None and not -depth <= layer < depth:
            there_are = f"layers 0..{depth - 1}" if depth else "no layers to choose from"
            raise ValueError(f"layer={layer}: a {type(self).__name__} has {there_are}")
        self.layer = layer if layer is None else layer % depth

    def take_clip_size(self, spec: SimulatorSpec) -> None:
        """Take the frame size of a simulator, and a clip of two of its latents where they hold several frames."""
        self.image_size = spec.context.image_size
        if spec.frames_per_step > 1:
            self.frames = 1 + spec.frames_per_step  # the first latent holds the first frame only

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Compute features: uint8 [b, t, H, W, 3] -> float32 [b, n, d]; those of a clip do not depend on the others.

        Raises:
            ValueError: frames of another size.
        """
        size = (int(frames.shape[2]), int(frames.shape[3]))
        if self.image_size is not None and size != tuple(self.image_size):
            raise ValueError(
                f"the model has frames of {self.image_size[0]}x{self.image_size[1]} pixels, but the data have "
                f"{size[0]}x{size[1]} (height x width): record or ingest the data at the model's size"
            )
        return self.tokens(frames_to_float(frames)).float()

    @abstractmethod
    def tokens(self, video: Tensor) -> Tensor:
        """Compute features: float [b, t, 3, H, W] in [-1, 1] -> [b, n, d]."""

    def with_layer(self, layer: int) -> Self:
        """Return the extractor of another layer of the same networks. Raises ValueError if there is none."""
        other = copy.copy(self)
        FeatureExtractor.__init__(other, self.networks, self.depth, layer)
        return other

    def reinitialized(self, seed: int) -> Self:
        """Return the extractor of the same layer of untrained networks with the same configs."""
        other = copy.copy(self)
        other.networks = {name: reinitialized_copy(part, seed) for name, part in self.networks.items()}
        return other

    def to(self, device: torch.device | str) -> Self:
        """Move the networks, in place."""
        for part in self.networks.values():
            nn.Module.to(part, device)
        return self


def reinitialized_copy(part: ModelMixin, seed: int) -> ModelMixin:
    """Return a network of the same class and config with new weights; torch's own generator stays as it was."""
    # Not from_config, which uses the class's default for arguments that were given by position.
    names = inspect.signature(type(part).__init__).parameters
    settings = {name: value for name, value in part.config.items() if name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(part)(**settings)
    made.eval().requires_grad_(False)
    return nn.Module.to(made, next(iter(part.state_dict().values())).device)
