"""Are the representations collapsing? The loss does not tell: a collapsed encoder has the lowest loss of all.

What a clip's tokens say about the clip is what differs between clips at one place. So everything is measured on
features less their mean over the clips at that place: an encoder that tells places apart, and clips not at all, has
collapsed too.

Legend: b batch (clips), n tokens, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RepresentationMetrics(NamedTuple):
    """How alive representations are.

    Attributes:
        spread: mean over the dimensions of the deviation between clips at one place.
        least_spread: the deviation of the tenth of the dimensions that vary least.
        rank: effective rank (RankMe, arXiv 2210.02885, eq. 1) of the features, 1 to d.
        drift: how far the same clips' features moved since the last look, as 1 - cosine; 0 at the first.
    """

    spread: float
    least_spread: float
    rank: float
    drift: float


@torch.no_grad()
def measure_representations(features: Tensor, before: Tensor | None = None) -> RepresentationMetrics:
    """Of features [b >= 2, n, d], and of the same clips' features at the last look."""
    if len(features) < 2:
        raise ValueError("the monitor compares clips with each other: it needs at least 2 a batch (data.batch_size)")
    centred = features.float() - features.float().mean(dim=0)
    rows = centred.flatten(0, 1)
    matrix = rows.T.double() @ rows.double()
    deviation = (matrix.diagonal() / (len(rows) - features.shape[1])).sqrt()
    singular = torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-12) + 1e-7
    rank = torch.exp(-(share * share.log()).sum())
    drift = 0.0 if before is None else float(1 - F.cosine_similarity(features.float(), before.float(), dim=-1).mean())
    least = deviation.sort().values[: max(1, len(deviation) // 10)].mean()
    return RepresentationMetrics(float(deviation.mean()), float(least), float(rank), drift)


class CollapseMonitor:
    """Watches the target representations of one batch that it keeps, and says when they collapse.

    Args:
        every: optimizer steps between looks; each costs a pass of the target encoder over ``clips`` clips.
        clips: how many clips of the first batch are kept to look at.
        spread: alarm where the spread falls under this share of what it was at the first look ...
        rank: ... or the effective rank under this share.
        stop: end the run at an alarm, rather than warn and go on.
    """

    def __init__(
        self, every: int = 50, clips: int = 32, spread: float = 0.2, rank: float = 0.25, stop: bool = False
    ) -> None:
        if every < 1 or clips < 2:
            raise ValueError(f"every={every} must be 1 or more, clips={clips} 2 or more")
        for name, share in (("spread", spread), ("rank", rank)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be a share in [0, 1)")
        self.every, self.clips, self.spread, self.rank, self.stop = every, clips, spread, rank, stop

    def alarm(self, now: RepresentationMetrics, first: RepresentationMetrics) -> str | None:
        """What is wrong, in words; None while the representations live."""
        if now.spread < self.spread * first.spread:
            return (
                f"the representations of different clips are becoming one: they deviate by {now.spread:.3g}, "
                f"{first.spread:.3g} at the first look"
            )
        if now.rank < self.rank * first.rank:
            return f"the representations fill ever fewer directions: {now.rank:.1f}, {first.rank:.1f} at the first look"
        return None


class CollapseBaseline(nn.Module):
    """The first look, kept in checkpoints so that a resumed run compares with the same."""

    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(len(RepresentationMetrics._fields), dtype=torch.float64))

    def get(self, now: RepresentationMetrics) -> RepresentationMetrics:
        """The first look, which is ``now`` where there was none."""
        if not self.values.any():
            self.values.copy_(torch.tensor(now, dtype=torch.float64))
        return RepresentationMetrics(*self.values.tolist())
