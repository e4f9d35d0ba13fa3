"""Cheap signs that a predicted frame is wrong, where there is no truth to compare with, and how well they tell.

Three predictors (mmbench2, arXiv 2606.27326): how much a frame changes when it is encoded and decoded again (frames
that a tokenizer cannot represent are not like its data), how much rollouts with other seeds differ, and how unsteadily
the scene moves. Each is correlated with the true error over clips and horizons.

Legend: n clips, t predicted frames, h w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vwm.core.capabilities import ReconstructsFrames
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.eval.action_following import scene_shifts
from vwm.eval.metrics import frame_mse
from vwm.eval.rollouts import open_loop_rollout

MORE_SEEDS = 2
"""Further rollouts from which the variance between seeds is measured."""
SEED_STEP = 1000
"""Distance of their seeds from the seed of the report."""


def measure_hallucination(
    simulator: Simulator,
    frames: Tensor,
    actions: Tensor,
    predicted: Tensor,
    context: int,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """Correlate the predictors with the squared error of predicted frames (Spearman's rank correlation).

    Args:
        simulator: the world.
        frames: uint8 [n, context + t, h, w, 3], real clips.
        actions: int64 [n, context + t - 1] or float32 [n, context + t - 1, a], between their frames.
        predicted: uint8 [n, t, h, w, 3], under these actions.
        context: context frames.
        seed: seed of the report.
        batch_size: simulations that step together.

    Returns:
        By predictor, the correlation over all frames and the correlation at the last horizon; None where a predictor
        cannot be computed or is constant. ``horizon`` is the correlation of the horizon alone, the trivial predictor.
    """
    error = frame_mse(frames[:, context:], predicted)
    horizon = torch.arange(error.shape[1], dtype=torch.float64).expand_as(error)
    predictors = {
        "round_trip": _round_trip(simulator, frames[:, context - 1 : context], predicted),
        "seed_variance": _seed_variance(simulator, frames, actions, predicted, context, seed, batch_size),
        "flow_instability": _flow_instability(frames[:, context - 1 : context], predicted),
        "horizon": horizon,
    }
    return {
        name: None if values is None else {"all": _rank(values, error), "last": _rank(values[:, -1], error[:, -1])}
        for name, values in predictors.items()
    }


def _round_trip(simulator: Simulator, last: Tensor, predicted: Tensor) -> Tensor | None:
    """Change of the frames when they are encoded and decoded again, float64 [n, t].

    Where a latent holds several frames, the first one holds ``last``, uint8 [n, 1, h, w, 3], of the context.
    """
    if not isinstance(simulator, ReconstructsFrames):
        return None
    if simulator.spec.frames_per_step > 1:
        shown = simulator.reconstruct(torch.cat((last, predicted), dim=1))[1][:, 1:]
    else:
        shown = simulator.reconstruct(predicted)[1]
    return frame_mse(predicted, shown.cpu())


def _seed_variance(
    simulator: Simulator,
    frames: Tensor,
    actions: Tensor,
    predicted: Tensor,
    context: int,
    seed: int,
    batch_size: int,
) -> Tensor | None:
    """Mean squared difference from the rollouts with other seeds, float64 [n, t]."""
    if not simulator.spec.stochastic:
        return None
    total = torch.zeros(predicted.shape[:2], dtype=torch.float64)
    for i in range(1, MORE_SEEDS + 1):
        seeds = world_seeds(seed + SEED_STEP * i, len(frames))
        other = open_loop_rollout(simulator, frames, actions, context, seeds, batch_size, f"rollout, other seed {i}")
        total += frame_mse(predicted, other[:, : predicted.shape[1]])
    return total / MORE_SEEDS


def _flow_instability(last: Tensor, predicted: Tensor) -> Tensor:
    """Change of the scene's shift from frame to frame, in pixels: float64 [n, t]; 0 at the first frame."""
    shifts = scene_shifts(torch.cat((last, predicted), dim=1)).double()
    change = (shifts[:, 1:] - shifts[:, :-1]).norm(dim=-1)
    return torch.cat((torch.zeros_like(shifts[:, :1, 0]), change), dim=1)


def _rank(values: Tensor, error: Tensor) -> float | None:
    """Spearman's correlation; None where one of them is constant."""
    x, y = values.flatten(), error.flatten()
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return None
    from torchmetrics.functional import spearman_corrcoef  # takes seconds to import

    return float(spearman_corrcoef(x, y))
