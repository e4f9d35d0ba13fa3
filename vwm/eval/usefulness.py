"""The measures of ``vwm eval`` that tell how useful a world is to players and policies, beyond open-loop errors.

Consistency over long horizons and controllability decide how useful a world is for policies; realism does not (WMBench,
arXiv 2607.02642).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from vwm.core.feature_extractor import FeatureExtractor
from vwm.eval.action_following import measure_action_following
from vwm.eval.drift import Drift, measure_drift
from vwm.eval.drift_features import model_features, tokenizer_features
from vwm.eval.hallucination import measure_hallucination
from vwm.eval.revisit import measure_revisit
from vwm.eval.world_measures import EvaluationData

REVISIT_SECONDS = 1.0


class Usefulness(NamedTuple):
    """Numbers by topic, and the frames of the drifting rollouts by pattern (uint8 [n, s, h, w, 3])."""

    numbers: dict[str, Any]
    drift_frames: dict[str, Tensor]


class DriftSettings(NamedTuple):
    """How drift and revisits are measured.

    Attributes:
        seconds: length of the rollouts under held actions; 0 leaves out drift and revisits.
        starts: clips that these start from.
        encoder: the model in whose features frames are compared; None takes the world's own tokenizer.
    """

    seconds: int
    starts: int
    encoder: str | None


def measure_usefulness(
    evaluation: EvaluationData, settings: DriftSettings, encoder: FeatureExtractor | None
) -> Usefulness:
    """Measure action following, signs of hallucination, drift and revisits.

    Args:
        evaluation: the clips and the world's predictions.
        settings: of drift and revisits.
        encoder: the model that ``settings.encoder`` names, loaded.
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
        )
        if not space.has_one_action
        else {"flow": None, "probe": None},
        "hallucination": measure_hallucination(
            simulator, frames, actions, evaluation.predicted, context, evaluation.seed, batch_size
        ),
        "drift": None,
        "revisit": None,
    }
    if not settings.seconds:
        return Usefulness(numbers, {})
    numbers["revisit"] = measure_revisit(
        simulator, frames, actions, context, REVISIT_SECONDS, settings.starts, batch_size
    )
    drift = _measure_drift(evaluation, settings, encoder)
    if drift is None:
        return Usefulness(numbers, {})
    numbers["drift"] = drift.numbers
    return Usefulness(numbers, drift.frames)


def _measure_drift(
    evaluation: EvaluationData, settings: DriftSettings, encoder: FeatureExtractor | None
) -> Drift | None:
    """Measure drift; None without an encoder, for a world that encodes no frames."""
    simulator, batch_size = evaluation.simulator, evaluation.batch_size
    if encoder is None:
        features = tokenizer_features(simulator, batch_size)
    else:
        features = model_features(encoder, batch_size, simulator.device)
    if features is None:
        return None
    drift = measure_drift(
        simulator,
        evaluation.sample.frames,
        evaluation.reconstruction.frames,
        evaluation.actions,
        features=features,
        context=evaluation.context,
        seconds=settings.seconds,
        starts=settings.starts,
        batch_size=batch_size,
    )
    drift.numbers["features"] = settings.encoder or "the world's own tokenizer"
    return drift
