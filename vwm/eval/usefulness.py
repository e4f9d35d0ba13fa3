"""The measures of ``vwm eval`` that tell how useful a world is to players and policies, beyond open-loop errors.

Consistency over long horizons and controllability decide how useful a world is for policies; realism does not (WMBench,
arXiv 2607.02642).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from vwm.eval.action_following import measure_action_following
from vwm.eval.drift import measure_drift
from vwm.eval.hallucination import measure_hallucination
from vwm.eval.revisit import measure_revisit
from vwm.eval.world_measures import EvaluationData

REVISIT_SECONDS = 1.0


class Usefulness(NamedTuple):
    """Numbers by topic, and the frames of the drifting rollouts by pattern (uint8 [n, s, h, w, 3])."""

    numbers: dict[str, Any]
    drift_frames: dict[str, Tensor]


def measure_usefulness(evaluation: EvaluationData, seconds: int, starts: int) -> Usefulness:
    """Measure action following, signs of hallucination, drift and revisits.

    Args:
        evaluation: the data of the report.
        seconds: length of the rollouts under held actions; 0 leaves out drift and revisits.
        starts: clips that these start from.
    """
    simulator, frames, actions = evaluation.simulator, evaluation.sample.frames, evaluation.actions
    context, batch_size = evaluation.context, evaluation.batch_size
    space = simulator.spec.actions
    numbers: dict[str, Any] = {
        "action_following": measure_action_following(
            frames,
            actions,
            evaluation.predicted,
            evaluation.predicted_random_actions,
            context,
            space.size if space.is_discrete else 0,
        ),
        "hallucination": measure_hallucination(
            simulator, frames, actions, evaluation.predicted, context, evaluation.seed, batch_size
        ),
        "drift": None,
        "revisit": None,
    }
    if not seconds:
        return Usefulness(numbers, {})
    drift = measure_drift(
        simulator,
        frames,
        evaluation.reconstruction.frames,
        actions,
        context=context,
        seconds=seconds,
        starts=starts,
        batch_size=batch_size,
    )
    numbers["revisit"] = measure_revisit(simulator, frames, actions, context, REVISIT_SECONDS, starts, batch_size)
    if drift is None:
        return Usefulness(numbers, {})
    numbers["drift"] = drift.numbers
    return Usefulness(numbers, drift.frames)
