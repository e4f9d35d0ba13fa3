"""Whether actions have an effect: Genie's difference in PSNR, and the cost of wrong actions for the dynamics.

Legend: n clips, t time, h w pixels or latents, c channels, a dimensions of a continuous action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vwm.core.capabilities import MeasuresTransitionLoss
from vwm.core.command_output import progress_bar
from vwm.core.simulator import Simulator
from vwm.eval.metrics import MeanEstimate, estimate_mean, frame_mse, psnr


class DeltaPSNR(NamedTuple):
    """By horizon: estimate over clips, number of clips left out, and difference of the sets' PSNRs in dB."""

    by_clip: list[MeanEstimate]
    excluded: list[int]
    over_set: Tensor

    def estimates(self) -> list[dict[str, float]]:
        """Return mean, standard error, number of clips and clips left out by horizon, for a report."""
        return [{**e._asdict(), "excluded": left_out} for e, left_out in zip(self.by_clip, self.excluded, strict=True)]


class ShuffledActionLoss(NamedTuple):
    """The loss on the next frame per latent element, under a clip's own actions and under those of other clips."""

    own: float
    shuffled: float


def delta_psnr(truth: Tensor, own: Tensor, random: Tensor) -> DeltaPSNR:
    """Subtract the PSNR under random actions from that under a clip's own actions (Genie, section 3).

    It is 0 if actions have no effect. In place of the prediction under random actions there may be any other one that
    a prediction is to be compared with, clip by clip: a copy of the last frame, or another world's.

    A clip with an exact frame has no finite PSNR there; it is left out at that horizon, and counted.

    Args:
        truth: uint8 [n, t, h, w, 3], the true frames after the context.
        own: predicted under the clips' own actions, of the same shape.
        random: predicted under random actions, of the same shape.
    """
    own_error, random_error = frame_mse(truth, own), frame_mse(truth, random)
    delta = psnr(own_error) - psnr(random_error)
    by_clip = [estimate_mean(column) for column in delta.unbind(dim=1)]
    of_sets = psnr(own_error.mean(dim=0)) - psnr(random_error.mean(dim=0))
    return DeltaPSNR(by_clip, [len(truth) - e.n for e in by_clip], of_sets)


def shuffled_action_loss(
    simulator: Simulator, latents: Tensor, actions: Tensor, batch_size: int
) -> ShuffledActionLoss | None:
    """Measure the cost of conditioning on another clip's action.

    The actions before stay as recorded: only the action that leads to the predicted frame is replaced, by that of the
    next clip of the (shuffled) sample at the same time.

    Args:
        simulator: the simulator to measure.
        latents: latents of the clips, int64 [n, t, h, w] or float [n, t, h, w, c].
        actions: int64 [n, t-1] or float32 [n, t-1, a].
        batch_size: clips at a time.

    Returns:
        None for a single clip, and for a simulator that does not measure its transition loss.
    """
    if len(latents) < 2 or not isinstance(simulator, MeasuresTransitionLoss):
        return None
    parts = zip(*(x.split(batch_size) for x in (latents, actions, actions.roll(1, dims=0))), strict=True)
    total = torch.zeros(2, dtype=torch.float64)
    with progress_bar(total=len(latents), desc="shuffled actions", unit="clip") as bar:
        for part in parts:
            total += simulator.transition_loss(*part)
            bar.update(len(part[0]))
    own, shuffled = (total / latents[:, 1:].numel()).tolist()
    return ShuffledActionLoss(own, shuffled)
