"""LPIPS and FVD, with weights from local files; nothing is downloaded.

Legend: n clips, t time, h w pixels, c channels, f features.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.core.frames import frames_to_float

LPIPS_NOTE = (
    "LPIPS is missing: it requires torchvision's AlexNet weights (alexnet-owt-7be5be79.pth from download.pytorch.org), "
    "given with --lpips-weights FILE"
)
FVD_NOTE = (
    "FVD is missing: it requires the I3D network as TorchScript (i3d_torchscript.pt, as StyleGAN-V uses it), "
    "given with --fvd-weights FILE"
)

ALEXNET_STAGES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 12))
"""AlexNet's five stages, as slices of its ``features``."""

LPIPS_MEAN, LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation by which LPIPS normalizes red, green and blue in [-1, 1]."""


class LPIPS(nn.Module):
    """Learned perceptual distance over AlexNet (arXiv 1801.03924, version 0.1).

    The linear heads are those of torchmetrics.

    Args:
        weights: torchvision's AlexNet state dict.

    Raises:
        ValueError: the file is missing or holds something else.
    """

    def __init__(self, weights: Path) -> None:
        import torchmetrics  # both take seconds to import
        from torchvision.models import alexnet

        super().__init__()
        with torch.device("meta"):
            features = alexnet(weights=None).features
        try:
            found = torch.load(weights, map_location="cpu", weights_only=True)
            own = {k.removeprefix("features."): v for k, v in found.items() if k.startswith("features.")}
            features.load_state_dict(own, assign=True)
        except Exception as error:  # unpickling and loading raise many types of errors
            raise ValueError(f"lpips_weights={weights} are no AlexNet weights ({error}). {LPIPS_NOTE}") from error
        self.stages = nn.ModuleList(features[first:last] for first, last in ALEXNET_STAGES)
        for module in self.stages.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        shipped = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
        heads = torch.load(shipped, map_location="cpu", weights_only=True)
        self.heads = [heads[f"lin{i}.model.1.weight"].flatten() for i in range(len(ALEXNET_STAGES))]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the distance of images, float [n, 3, h, w] in [-1, 1] twice -> [n]; 0 where they are equal."""
        x, y = ((z - z.new_tensor(LPIPS_MEAN)[:, None, None]) / z.new_tensor(LPIPS_STD)[:, None, None] for z in (x, y))
        total = x.new_zeros(len(x))
        for stage, head in zip(self.stages, self.heads, strict=True):
            x, y = stage(x), stage(y)
            difference = (_normalize_features(x) - _normalize_features(y)).square()
            total += torch.einsum("nchw,c->nhw", difference, head.to(x)).mean(dim=(1, 2))
        return total

    def per_time_step(self, truth: Tensor, prediction: Tensor) -> Tensor:
        """Compute the mean over clips at each time step: uint8 [n, t, h, w, 3] twice -> float64 [t].

        Raises:
            ValueError: the frames are too small for AlexNet.
        """
        if min(truth.shape[2:4]) < 31:
            raise ValueError(f"LPIPS requires frames of 31x31 pixels or more, these have {list(truth.shape[2:4])}")
        pairs = zip(frames_to_float(truth).unbind(1), frames_to_float(prediction).unbind(1), strict=True)
        return torch.stack([self(x, y).double().mean() for x, y in pairs])


def _normalize_features(x: Tensor) -> Tensor:
    """Scale the features of every pixel to length 1."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class FVD:
    """Fréchet video distance (arXiv 1812.01717) between sets of clips; with few clips it is biased upwards.

    Args:
        weights: I3D as TorchScript, called as ``(video [n, 3, t, h, w] in [-1, 1], rescale, resize, return_features)``
            for features [n, f].

    Raises:
        ValueError: the file is missing or holds something else.
    """

    def __init__(self, weights: Path) -> None:
        try:
            # torch.jit is deprecated, but I3D is distributed in no other form.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.network = torch.jit.load(str(weights), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"fvd_weights={weights} are no TorchScript network ({error}). {FVD_NOTE}") from error

    def __call__(self, truth: Tensor, prediction: Tensor) -> float:
        """Compute the distance of clips, uint8 [n, t, h, w, 3] twice.

        Raises:
            ValueError: clips of fewer than 9 frames: I3D halves the time axis three times.
        """
        if truth.shape[1] < 9:
            raise ValueError(
                f"FVD requires clips of 9 frames or more, these have {truth.shape[1]}: set a longer --horizon"
            )
        return float(frechet_distance(self.features(truth), self.features(prediction)))

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        """Compute the features of clips: uint8 [n, t, h, w, 3] -> [n, f]."""
        videos = (frames_to_float(part).transpose(1, 2) for part in frames.split(8))
        return torch.cat([self.network(v, rescale=False, resize=True, return_features=True) for v in videos])


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute the Fréchet distance of the Gaussians fitted to two sets of features, [n, f] each, in float64."""
    x, y = x.double(), y.double()
    mean = F.mse_loss(x.mean(dim=0), y.mean(dim=0), reduction="sum")
    a, b = torch.cov(x.T).view(x.shape[1], -1), torch.cov(y.T).view(y.shape[1], -1)
    # The trace of (a b)^(1/2) is the sum of the square roots of the eigenvalues of a b, which are real and at least 0.
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt()
    return mean + a.trace() + b.trace() - 2 * roots.sum()
