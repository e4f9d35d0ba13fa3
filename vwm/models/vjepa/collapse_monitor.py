"""Detect representation collapse, which the loss does not show: a collapsed encoder has the lowest loss.

All metrics are computed on features minus their mean over the clips at the same token position. An encoder whose
features depend on the position only, and not on the clip, has therefore collapsed, too.

Legend: b batch (clips), n tokens, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DRIFT_CLIPS = 4
"""Clips whose features are kept from one measurement to the next, and saved in checkpoints."""


class RepresentationMetrics(NamedTuple):
    """Metrics of the diversity of representations.

    Attributes:
        spread: standard deviation between clips at one position, averaged over the dimensions.
        least_spread: the same, averaged over the tenth of the dimensions that vary least.
        rank: effective rank (RankMe, arXiv 2210.02885, eq. 1) of the features, between 1 and d.
        drift: 1 - cosine similarity between the features of the same clips now and at the last measurement; 0 at the
            first.
    """

    spread: float
    least_spread: float
    rank: float
    drift: float


@torch.no_grad()
def measure_representations(features: Tensor, previous: Tensor | None = None) -> RepresentationMetrics:
    """Measure features [b >= 2, n, d].

    Args:
        features: of the monitored clips.
        previous: those of the first ``DRIFT_CLIPS`` of them at the last measurement, where there was one.

    Raises:
        ValueError: there is only one clip.
    """
    if len(features) < 2:
        raise ValueError("the collapse monitor compares clips: raise data.batch_size to at least 2")
    centered = features.float() - features.float().mean(dim=0)
    rows = centered.flatten(0, 1)
    gram = rows.T.double() @ rows.double()
    std = (gram.diagonal() / (len(rows) - features.shape[1])).sqrt()
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-12) + 1e-7
    rank = torch.exp(-(p * p.log()).sum())
    drift = 0.0
    if previous is not None:
        now = features[: len(previous)].float()
        drift = float(1 - F.cosine_similarity(now, previous.to(now.device).float(), dim=-1).mean())
    least = std.sort().values[: max(1, len(std) // 10)].mean()
    return RepresentationMetrics(spread=float(std.mean()), least_spread=float(least), rank=float(rank), drift=drift)


class CollapseMonitor:
    """Settings of the collapse monitor, which compares the target representations of fixed clips with their first ones.

    Args:
        every_n_steps: optimizer steps between measurements; each costs one pass of the target encoder.
        num_clips: number of clips of the first batch that are measured.
        min_spread_ratio: report a collapse if the spread is below this share of its first value.
        min_rank_ratio: report a collapse if the effective rank is below this share of its first value.
        stop_on_collapse: stop the run at a collapse; otherwise only warn.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        num_clips: int = 32,
        min_spread_ratio: float = 0.2,
        min_rank_ratio: float = 0.25,
        stop_on_collapse: bool = False,
    ) -> None:
        if every_n_steps < 1 or num_clips < 2:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1 and num_clips={num_clips} at least 2")
        for name, share in (("min_spread_ratio", min_spread_ratio), ("min_rank_ratio", min_rank_ratio)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be in [0, 1)")
        self.every_n_steps = every_n_steps
        self.num_clips = num_clips
        self.min_spread_ratio = min_spread_ratio
        self.min_rank_ratio = min_rank_ratio
        self.stop_on_collapse = stop_on_collapse

    def check(self, metrics: RepresentationMetrics, first: RepresentationMetrics) -> str | None:
        """Return a description of the collapse, or None if there is none."""
        if metrics.spread < self.min_spread_ratio * first.spread:
            return (
                "the representations of different clips are becoming equal: their standard deviation is "
                f"{metrics.spread:.3g}, initially {first.spread:.3g}"
            )
        if metrics.rank < self.min_rank_ratio * first.rank:
            return (
                "the representations are collapsing to few dimensions: their effective rank is "
                f"{metrics.rank:.1f}, initially {first.rank:.1f}"
            )
        return None


class CollapseBaseline(nn.Module):
    """The first metrics, a buffer that is saved in checkpoints so that a resumed run compares with the same values."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(len(RepresentationMetrics._fields), dtype=torch.float64))

    def get_or_set(self, metrics: RepresentationMetrics) -> RepresentationMetrics:
        """Return the first metrics, and store ``metrics`` as those if there are none."""
        if not self.values.any():
            self.values.copy_(torch.tensor(metrics, dtype=torch.float64))
        return RepresentationMetrics(*self.values.tolist())
