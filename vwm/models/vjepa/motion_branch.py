"""A motion branch: self-supervised optical flow between consecutive time steps, trained with the masked prediction.

As in MC-JEPA (arXiv 2307.12698), one encoder learns content and motion. The flow is estimated by a soft matching of
each token with the tokens around its position one time step later. The loss compares features and pixels with those of
the next time step, warped by the flow.

Legend: b batch, t time, h w grid of tokens, d width, c channels of the matched features, r radius of the search.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class MotionBranch(nn.Module):
    """Estimate flow on the grid of tokens, and compute its loss.

    Args:
        width: width of the encoder.
        channels: channels of the matched features.
        radius: r, in tokens.
        weight: weight of the total loss of this branch.
        photometric_weight: weight of the pixel loss, relative to the feature loss.
        smoothness_weight: weight of the differences of the flow between neighbors.
        variance_weight: weight of the hinge loss that prevents a collapse of the matched features.

    Raises:
        ValueError: ``radius`` is below 1.
    """

    def __init__(
        self,
        width: int,
        channels: int = 64,
        radius: int = 2,
        weight: float = 0.1,
        photometric_weight: float = 1.0,
        smoothness_weight: float = 0.1,
        variance_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if radius < 1:
            raise ValueError(f"radius={radius} must be at least 1 token")
        self.radius = radius
        self.weight = weight
        self.photometric_weight = photometric_weight
        self.smoothness_weight = smoothness_weight
        self.variance_weight = variance_weight
        self.project = nn.Linear(width, channels)
        self.log_temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens: Tensor, video: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss, and values to log.

        Args:
            tokens: encoder tokens of whole clips, [b, t*h*w, d].
            video: the clips, float [b, frames, 3, H, W].
            grid: (t, h, w).

        Raises:
            ValueError: t is below 2.
        """
        t, h, w = grid
        if t < 2:
            raise ValueError(
                f"motion needs 2 time steps of tokens, and clips of {video.shape[1]} frames have {t}: raise "
                "data.clip_length"
            )
        features = rearrange(self.project(tokens), "b (t h w) c -> b t c h w", t=t, h=h)
        flow = self.estimate_flow(features)
        earlier, later = (rearrange(f, "b t c h w -> (b t) c h w") for f in (features[:, :-1], features[:, 1:]))
        # Pixels at 4 x 4 per token, one frame per time step; smaller motion is not measured.
        pixels = F.adaptive_avg_pool2d(video.flatten(0, 1), (4 * h, 4 * w))
        pixels = pixels.unflatten(0, video.shape[:2])[:, :: video.shape[1] // t][:, :t]
        before, after = (rearrange(f, "b t c h w -> (b t) c h w") for f in (pixels[:, :-1], pixels[:, 1:]))
        pixel_flow = F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=False) * 4
        losses = {
            "feature": F.smooth_l1_loss(warp_by_flow(later, flow), earlier),
            "photometric": self.photometric_weight * F.l1_loss(warp_by_flow(after, pixel_flow), before),
            "smoothness": self.smoothness_weight * (flow.diff(dim=2).abs().mean() + flow.diff(dim=3).abs().mean()),
            "variance": self.variance_weight
            * (1 - (features.transpose(1, 2).flatten(2).var(2) + 1e-4).sqrt()).relu().mean(),
        }
        logs = {f"motion_{name}_loss": loss.detach() for name, loss in losses.items()}
        return self.weight * torch.stack(list(losses.values())).sum(), logs

    def estimate_flow(self, features: Tensor) -> Tensor:
        """Estimate the flow from each time step to the next: [b, t, c, h, w] -> [b*(t-1), 2, h, w].

        The flow is in tokens, (columns, rows): the mean offset within the radius, weighted by the similarity of the
        next features at that offset.
        """
        c, h, w = features.shape[2:]
        unit = F.normalize(features, dim=2)
        earlier, later = unit[:, :-1].flatten(0, 1), unit[:, 1:].flatten(0, 1)
        side = 2 * self.radius + 1
        neighbors = F.unfold(later, side, padding=self.radius).unflatten(1, (c, side * side)).unflatten(3, (h, w))
        similarity = torch.einsum("bchw,bckhw->bkhw", earlier, neighbors) * self.log_temperature.exp()
        outside = F.unfold(torch.ones_like(later[:1, :1]), side, padding=self.radius).view(1, side * side, h, w) == 0
        weights = similarity.masked_fill(outside, -torch.inf).softmax(dim=1)
        offset = torch.arange(-self.radius, self.radius + 1, device=features.device, dtype=weights.dtype)
        rows, columns = (x.flatten() for x in torch.meshgrid(offset, offset, indexing="ij"))
        return torch.einsum("bkhw,ka->bahw", weights, torch.stack((columns, rows), dim=1))


def warp_by_flow(image: Tensor, flow: Tensor) -> Tensor:
    """Sample an image [b, c, h, w] at positions displaced by the flow, [b, 2, h, w] in pixels (columns, rows)."""
    h, w = image.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype),
        torch.arange(w, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    x = (2 * (columns + flow[:, 0]) + 1) / w - 1
    y = (2 * (rows + flow[:, 1]) + 1) / h - 1
    return F.grid_sample(image, torch.stack((x, y), dim=-1), padding_mode="border", align_corners=False)
