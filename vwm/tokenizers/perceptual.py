"""A perceptual loss: distance of features of a pretrained network (arXiv 1603.08155, eq. 2; unit features as LPIPS)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class PerceptualLoss(nn.Module):
    """Squared distance of unit-length features at every place, the mean of a backbone's stages.

    Nothing is downloaded: the weights come from a file.

    Args:
        backbone: a timm name, ``vgg16``, ``resnet50`` or ``convnext_tiny`` for example.
        weights: its weights, as timm publishes them: ``.safetensors``, or a pickled state dict.
        weight: of this loss beside the squared error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights of something else.
    """

    def __init__(self, backbone: str, weights: Path, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        network = timm.create_model(backbone, pretrained=False, num_classes=0)
        self.mean = torch.tensor(network.pretrained_cfg["mean"])[:, None, None]
        self.std = torch.tensor(network.pretrained_cfg["std"])[:, None, None]
        _load_backbone_weights(network, backbone, Path(weights))
        # In a tuple, so that a frozen network that lies in a file already is in no checkpoint and no optimizer.
        self._network: tuple[Any] = (network.eval().requires_grad_(False),)

    def forward(self, shown: Tensor, video: Tensor) -> Tensor:
        """float [b, t, 3, H, W] in [-1, 1] twice -> scalar, already weighted."""
        (network,) = self._network
        network.to(shown.device)
        pairs = zip(self._features(shown), self._features(video), strict=True)
        distances = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean() for x, y in pairs]
        return self.weight * torch.stack(distances).mean()

    def _features(self, video: Tensor) -> list[Tensor]:
        x = ((video.flatten(0, 1) + 1) / 2 - self.mean.to(video)) / self.std.to(video)
        features: list[Tensor] = self._network[0].forward_intermediates(x, intermediates_only=True)
        return features


def _load_backbone_weights(network: nn.Module, backbone: str, weights: Path) -> None:
    if not weights.is_file():
        raise FileNotFoundError(
            f"perceptual weights {weights} do not exist: save timm's weights of {backbone} there "
            f"(timm.create_model({backbone!r}, pretrained=True) on a machine with a network), or leave the loss out"
        )
    try:
        kept = weights.suffix == ".safetensors"
        found = load_file(weights) if kept else torch.load(weights, map_location="cpu", weights_only=True)
        missing = network.load_state_dict(found, strict=False).missing_keys
    except (SafetensorError, RuntimeError, OSError, TypeError, AttributeError, ValueError, EOFError) as error:
        raise ValueError(f"perceptual weights {weights} are no weights of {backbone}: {error}") from error
    if missing:
        raise ValueError(f"perceptual weights {weights} are no weights of {backbone}: {missing[:3]} are not in it")
