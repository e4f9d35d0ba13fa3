"""Do the actions act? Genie's difference in PSNR, and what wrong actions cost the dynamics.

Legend: n clips, t time, h w pixels, k codebook size, a dimensions of a continuous action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vwm.eval.metrics import Estimate, estimate, psnr, squared_error
from vwm.genie.dynamics import MaskGITDynamics


class DeltaPSNR(NamedTuple):
    """By horizon: the estimate over clips, the clips left out, and the difference of the sets' PSNRs in dB."""

    by_clip: list[Estimate]
    excluded: list[int]
    by_set: Tensor


class ShuffleCost(NamedTuple):
    """Cross-entropy of the next frame's tokens in nats a token, under the right actions and under others'."""

    right: float
    shuffled: float


def delta_psnr(truth: Tensor, own: Tensor, random: Tensor) -> DeltaPSNR:
    """PSNR under a clip's own actions less PSNR under random ones (Genie, section 3): 0 where actions do nothing.

    A clip of which a frame is exact has no finite PSNR there; it is left out at that horizon, and counted.

    Args:
        truth: uint8 [n, t, h, w, 3], the true frames after the context.
        own: predicted under the clips' own actions, likewise.
        random: predicted under random actions, likewise.
    """
    right, wrong = squared_error(truth, own), squared_error(truth, random)
    delta = psnr(right) - psnr(wrong)
    by_clip = [estimate(column) for column in delta.unbind(dim=1)]
    return DeltaPSNR(by_clip, [len(truth) - e.n for e in by_clip], psnr(right.mean(dim=0)) - psnr(wrong.mean(dim=0)))


@torch.inference_mode()
def shuffle_cost(dynamics: MaskGITDynamics, tokens: Tensor, actions: Tensor, batch_size: int) -> ShuffleCost | None:
    """What it costs to be told another clip's action.

    The next frame is wholly masked, the past is whole and has its right actions: only the action that leads to the
    frame in question is exchanged, for the one that the next clip of the (shuffled) sample has at that place. It goes
    the way of play, frame by frame from cached keys and values.

    Args:
        dynamics: the model.
        tokens: int64 [n, t, h, w].
        actions: int64 [n, t-1] or float32 [n, t-1, a].
        batch_size: clips at a time.

    Returns:
        None for a single clip, which has nobody to exchange with.
    """
    if len(tokens) < 2:
        return None
    parts = zip(*(x.split(batch_size) for x in (tokens.flatten(2), actions, actions.roll(1, dims=0))), strict=True)
    total = torch.zeros(2, dtype=torch.float64)
    with tqdm(total=len(tokens), desc="shuffled actions", unit="clip", disable=None) as bar:
        for part in parts:
            total += _cross_entropies(dynamics, *(x.to(dynamics.places.device) for x in part))
            bar.update(len(part[0]))
    right, shuffled = (total / tokens[:, 1:].numel()).tolist()
    return ShuffleCost(right, shuffled)


def _cross_entropies(dynamics: MaskGITDynamics, tokens: Tensor, right: Tensor, shuffled: Tensor) -> Tensor:
    """The sums over the tokens of frames 1..t-1, under right and shuffled actions: float64 [2]."""
    state = dynamics.observe(dynamics.init_state(len(tokens)), tokens[:, :1], None)
    masked = torch.full_like(tokens[:, :1], dynamics.mask_token)
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(tokens.shape[1] - 1):
        truth = tokens[:, i + 1 : i + 2]
        for way, actions in enumerate((right, shuffled)):
            logits = dynamics.logits(state, masked, actions[:, i : i + 1]).float()
            total[way] += F.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="sum").item()
        state = dynamics.observe(state, truth, right[:, i : i + 1])
    return total
