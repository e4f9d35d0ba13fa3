"""How far an agent may imagine in a world: the horizon up to which its predictions beat trivial ones, and the penalty.

Two errors that compound are followed over a rollout under the recorded actions. Of observations: the world must be
closer to the truth than a copy of the last observation, and than itself under random actions (at the first step clip by
clip, by more than two standard errors). Of returns: the sum of predicted rewards must be closer to the real one than
the mean return, as soon as any clip has earned a reward. An agent that plans or learns beyond the horizon where either
fails learns from the model's errors (Janner et al. 2019, MBPO, arXiv 1906.08253, section 4.2).

Where other worlds measure uncertainty, the penalty is the factor by which the uncertainty of a step bounds the error of
its reward in 95% of the steps (Yu et al. 2020, MOPO, arXiv 2005.13239, requires such a bound), and the limit is the
99th percentile of the uncertainty under recorded actions.

Legend: n clips, h steps of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vwm.core.capabilities import EstimatesUncertainty
from vwm.core.command_output import progress_bar
from vwm.core.seeds import world_seeds
from vwm.core.simulator import Simulator
from vwm.eval.eval_clips import EvalClips
from vwm.eval.horizon_table import STANDARD_ERRORS
from vwm.eval.rollouts import random_action_sequences, read_clip_actions, repeat_last_frame

PENALTY_PERCENTILE = 95
LIMIT_PERCENTILE = 99

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HorizonAdvice:
    """Horizons in steps of the world, and what they come from.

    Attributes:
        observations: last step up to which observations are better than both trivial ones; 0 where the first is not,
            clearly.
        longest: h, the last step that was measured.
        error, error_copy, error_random_actions: mean squared errors [h] of observations, in variances of the truth.
        returns: last step up to which returns are better than the mean return; None without rewards that change.
        rewarded_clips: number of clips with a reward that is not 0.
        return_error, return_error_mean: root mean squared errors [h] of the return of the steps so far, and of always
            predicting the mean return; empty without rewards that change.
        uncertainty_penalty, uncertainty_limit: see the module; None without an ensemble, or rewards that change.
    """

    observations: int
    longest: int
    error: list[float]
    error_copy: list[float]
    error_random_actions: list[float]
    returns: int | None = None
    rewarded_clips: int = 0
    return_error: list[float] = field(default_factory=list)
    return_error_mean: list[float] = field(default_factory=list)
    uncertainty_penalty: float | None = None
    uncertainty_limit: float | None = None

    @property
    def horizon(self) -> int:
        """The horizon to imagine: the smaller of both."""
        return self.observations if self.returns is None else min(self.observations, self.returns)


def advise_horizon(
    simulator: Simulator, sample: EvalClips, rewards: Tensor | None, context: int, seed: int, batch_size: int
) -> HorizonAdvice:
    """Roll out clips under their actions and under random ones, and find the horizons.

    Args:
        simulator: the world, or an ensemble that estimates uncertainty; it predicts observations.
        sample: clips of which ``frames`` are observations, uint8 [n, t, height, width, 3] or float32 [n, t, k].
        rewards: float32 [n, t], of the actions; None where the data have none.
        context: observations that are shown.
        seed: of the simulations and the random actions.
        batch_size: simulations that step together.

    Raises:
        ValueError: fewer than two clips.
    """
    if len(sample) < 2:
        raise ValueError(f"{len(sample)} clip: standard errors need two clips or more")
    seeds, truth, frames_per_step = world_seeds(seed, len(sample)), sample.frames, simulator.spec.frames_per_step
    actions = read_clip_actions(simulator, sample, batch_size)
    others = random_action_sequences(simulator.spec.actions, seeds, actions.shape[1])
    others[:, : context - 1] = actions[:, : context - 1]
    own = roll_out(simulator, truth, actions, context, seeds, batch_size)
    random = roll_out(simulator, truth, others, context, seeds, batch_size)
    variance = float(truth[:, context:].double().var(correction=0)) or 1.0
    copied = _squared_error(truth[:, context:], repeat_last_frame(truth, context), frames_per_step)
    gains = [reference - own.error for reference in (copied, random.error)]
    clear = all(_clearly_above_zero(gain[:, 0]) for gain in gains)
    advice = HorizonAdvice(
        observations=count_leading(np.all([gain.mean(axis=0) > 0 for gain in gains], axis=0)) if clear else 0,
        longest=own.error.shape[1],
        **{
            name: (errors.mean(axis=0) / variance).tolist()
            for name, errors in (("error", own.error), ("error_copy", copied), ("error_random_actions", random.error))
        },
    )
    if rewards is None or not rewards.std(correction=0) > 0:
        return advice
    real = rewards[:, context - 1 : -1].double().unflatten(1, (-1, frames_per_step)).sum(2).numpy()
    return _with_rewards(advice, own, real)


class Rollout(NamedTuple):
    """What a rollout gave: the squared error of observations, the rewards and the uncertainty, float64 [n, h] each."""

    error: Floats
    reward: Floats
    uncertainty: Floats | None = None


@torch.no_grad()
def roll_out(
    simulator: Simulator, observations: Tensor, actions: Tensor, context: int, seeds: Tensor, batch_size: int
) -> Rollout:
    """Roll clips out under given actions; see ``open_loop_rollout`` for the arguments."""
    frames_per_step = simulator.spec.frames_per_step
    parts = []
    batches = list(zip(*(x.split(batch_size) for x in (observations, actions, seeds)), strict=True))
    for clip, action, own_seeds in progress_bar(batches, desc="rollout", unit="batch"):
        between = action[:, : context - 1] if context > 1 else None
        state, _ = simulator.reset(clip[:, :context], own_seeds, between)
        shown, paid, doubt = [], [], []
        for taken in simulator.action_steps(action[:, context - 1 :]).unbind(1):
            state, out = simulator.step(state, taken)
            shown.append(out.frames.cpu())
            paid.append(out.reward.cpu().double())
            if isinstance(simulator, EstimatesUncertainty):
                doubt.append(simulator.uncertainty(state).cpu().double())
        error = _squared_error(clip[:, context:], torch.cat(shown, dim=1), frames_per_step)
        parts.append((error, *(torch.stack(values, dim=1).numpy() for values in (paid, doubt) if values)))
    return Rollout(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def count_leading(holds: NDArray[np.bool_]) -> int:
    """Count the steps until the first that does not hold."""
    return len(holds) if holds.all() else int(holds.argmin())


def _with_rewards(advice: HorizonAdvice, own: Rollout, real: Floats) -> HorizonAdvice:
    """Add what the rewards [n, h] of the recording say."""
    total = real.cumsum(axis=1)
    errors = np.sqrt(((own.reward.cumsum(axis=1) - total) ** 2).mean(axis=0))
    trivial = total.std(axis=0)
    found = replace(
        advice,
        returns=count_leading((errors < trivial) | (trivial == 0)),
        rewarded_clips=int(real.any(axis=1).sum()),
        return_error=errors.tolist(),
        return_error_mean=trivial.tolist(),
    )
    if own.uncertainty is None:
        return found
    within = slice(max(1, found.horizon))
    doubt, wrong = own.uncertainty[:, within], np.abs(own.reward - real)[:, within]
    ratios = wrong / np.maximum(doubt, np.finfo(np.float64).tiny)
    return replace(
        found,
        uncertainty_penalty=float(np.percentile(ratios, PENALTY_PERCENTILE)),
        uncertainty_limit=float(np.percentile(doubt, LIMIT_PERCENTILE)),
    )


def _squared_error(truth: Tensor, predicted: Tensor, frames_per_step: int) -> Floats:
    """Return the mean squared error of each step: [n, t, ...] -> [n, h]."""
    each = [(a.double() - b.double()).square().flatten(1).mean(1) for a, b in zip(truth, predicted, strict=True)]
    return torch.stack(each).unflatten(1, (-1, frames_per_step)).mean(2).numpy()


def _clearly_above_zero(differences: Floats) -> bool:
    """Whether the mean over clips [n] is above zero by more than two standard errors."""
    return bool(differences.mean() > STANDARD_ERRORS * differences.std(ddof=1) / np.sqrt(len(differences)))
