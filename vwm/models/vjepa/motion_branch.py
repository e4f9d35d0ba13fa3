"""A motion branch: optical flow between neighbouring moments, learned without labels beside the masked prediction.

The idea of MC-JEPA (arXiv 2307.12698): one encoder learns what is there and how it moves. Here the flow is read from
the encoder's tokens by comparing each with those around its place a moment later (a soft match), and is right when the
later features, and the later pixels, looked up where the flow points, are the earlier ones.

Legend: b batch, t time, h w the grid of tokens, d width, r radius of the search.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class MotionBranch(nn.Module):
    """Flow on the grid of tokens, and its loss.

    Args:
        width: of the encoder.
        channels: of the features that are matched.
        radius: how many tokens far the search goes.
        weight: of the whole branch in the loss.
        photometric: weight of the pixels, beside that of the features, which is 1.
        smoothness: weight of the flow's differences between neighbours.
        variance: weight of the hinge that keeps the matched features from becoming all alike.
    """

    def __init__(
        self,
        width: int,
        channels: int = 64,
        radius: int = 2,
        weight: float = 0.1,
        photometric: float = 1.0,
        smoothness: float = 0.1,
        variance: float = 1.0,
    ) -> None:
        super().__init__()
        if radius < 1:
            raise ValueError(f"radius={radius} must be 1 token or more")
        self.radius, self.weight = radius, weight
        self.photometric, self.smoothness, self.variance = photometric, smoothness, variance
        self.project = nn.Linear(width, channels)
        self.log_temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens: Tensor, video: Tensor, grid: tuple[int, int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and what to log.

        Args:
            tokens: the encoder's, of whole clips, [b, t*h*w, d].
            video: the clips, float [b, frames, 3, H, W].
            grid: (t, h, w); t must be 2 or more.
        """
        t, h, w = grid
        if t < 2:
            raise ValueError(f"motion needs 2 moments, and a clip of {video.shape[1]} frames has {t}: lengthen clips")
        features = rearrange(self.project(tokens), "b (t h w) c -> b t c h w", t=t, h=h)
        flow = self.flow(features)
        earlier, later = (rearrange(f, "b t c h w -> (b t) c h w") for f in (features[:, :-1], features[:, 1:]))
        # The pixels of a moment, shrunk to four a token and side: what moves less than that is not seen.
        fine = F.adaptive_avg_pool2d(video.flatten(0, 1), (4 * h, 4 * w))
        fine = fine.unflatten(0, video.shape[:2])[:, :: video.shape[1] // t][:, :t]
        before, after = (rearrange(f, "b t c h w -> (b t) c h w") for f in (fine[:, :-1], fine[:, 1:]))
        wide = F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=False) * 4
        parts = {
            "feature": F.smooth_l1_loss(warp_by_flow(later, flow), earlier),
            "photometric": self.photometric * F.l1_loss(warp_by_flow(after, wide), before),
            "smoothness": self.smoothness * (flow.diff(dim=2).abs().mean() + flow.diff(dim=3).abs().mean()),
            "variance": self.variance * (1 - (features.transpose(1, 2).flatten(2).var(2) + 1e-4).sqrt()).relu().mean(),
        }
        logs = {f"motion_{name}_loss": part.detach() for name, part in parts.items()}
        return self.weight * torch.stack(list(parts.values())).sum(), logs

    def flow(self, features: Tensor) -> Tensor:
        """Where each place of a moment went until the next, in tokens (columns, then rows): [b*(t-1), 2, h, w].

        The mean of the places within the radius, weighted by how well the later features there match.
        """
        c, h, w = features.shape[2:]
        unit = F.normalize(features, dim=2)
        earlier, later = unit[:, :-1].flatten(0, 1), unit[:, 1:].flatten(0, 1)
        side = 2 * self.radius + 1
        around = F.unfold(later, side, padding=self.radius).unflatten(1, (c, side * side)).unflatten(3, (h, w))
        match = torch.einsum("bchw,bckhw->bkhw", earlier, around) * self.log_temperature.exp()
        outside = F.unfold(torch.ones_like(later[:1, :1]), side, padding=self.radius).view(1, side * side, h, w) == 0
        weights = match.masked_fill(outside, -torch.inf).softmax(dim=1)
        offset = torch.arange(-self.radius, self.radius + 1, device=features.device, dtype=weights.dtype)
        rows, columns = (x.flatten() for x in torch.meshgrid(offset, offset, indexing="ij"))
        return torch.einsum("bkhw,ka->bahw", weights, torch.stack((columns, rows), dim=1))


def warp_by_flow(image: Tensor, flow: Tensor) -> Tensor:
    """What stands where the flow points: image [b, c, h, w], flow [b, 2, h, w] in its pixels (columns, then rows)."""
    h, w = image.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype),
        torch.arange(w, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    x = (2 * (columns + flow[:, 0]) + 1) / w - 1
    y = (2 * (rows + flow[:, 1]) + 1) / h - 1
    return F.grid_sample(image, torch.stack((x, y), dim=-1), padding_mode="border", align_corners=False)
