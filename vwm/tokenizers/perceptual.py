"""Perceptual loss: distance of normalized features of a pretrained network (arXiv 1603.08155, eq. 2; LPIPS)."""

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
    """Squared distance of unit-length features, averaged over positions and over the stages of a backbone.

    Nothing is downloaded: the weights are read from a file.

    Args:
        backbone: name of a timm model, such as ``vgg16``, ``resnet50`` or ``convnext_tiny``.
        weights: file of its weights as published by timm: ``.safetensors``, or a pickled state dict.
        weight: weight of this loss.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not contain weights of the backbone.
    """

    def __init__(self, backbone: str, weights: Path, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        network = timm.create_model(backbone, pretrained=False, num_classes=0)
        self.mean = torch.tensor(network.pretrained_cfg["mean"])[:, None, None]
        self.std = torch.tensor(network.pretrained_cfg["std"])[:, None, None]
        _load_backbone_weights(network, backbone, Path(weights))
        # In a tuple, which keeps the frozen network out of checkpoints and optimizers.
        self._network: tuple[Any] = (network.eval().requires_grad_(False),)

    def forward(self, reconstructed: Tensor, video: Tensor) -> Tensor:
        """Return the weighted loss, a scalar, of two videos float [b, t, 3, H, W] in [-1, 1]."""
        (network,) = self._network
        network.to(reconstructed.device)
        pairs = zip(self._features(reconstructed), self._features(video), strict=True)
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
            f"(timm.create_model({backbone!r}, pretrained=True) on a machine with a network), "
            "or leave the loss out (model.perceptual=null)"
        )
    try:
        is_safetensors = weights.suffix == ".safetensors"
        state = load_file(weights) if is_safetensors else torch.load(weights, map_location="cpu", weights_only=True)
        missing = network.load_state_dict(state, strict=False).missing_keys
    except (SafetensorError, RuntimeError, OSError, TypeError, AttributeError, ValueError, EOFError) as error:
        raise ValueError(f"perceptual weights {weights} are no weights of {backbone}: {error}") from error
    if missing:
        raise ValueError(f"perceptual weights {weights} are no weights of {backbone}: {missing[:3]} are missing")
