"""Whether predicted frames move as real ones do: by the shift of the scene, and by an inverse-dynamics probe.

ΔPSNR and the cost of shuffled actions compare pixels and latents; here motion itself is compared. The probe (after the
action accuracy of Genie-like worlds, and VPT's inverse dynamics, arXiv 2206.11795) learns from real frames which action
led from one frame to the next, and is then applied to predicted frames.

Legend: n clips, t time, h w pixels, k actions or dimensions, f features of a pair of frames.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vwm.eval.action_descriptions import estimate_scene_shift
from vwm.eval.closed_form_probes import ridge_probe

PROBE_HORIZON = 4
"""Predicted frames of a rollout that the probe sees; later ones differ from the truth for other reasons, too."""
PROBE_GRID = 8
"""Side of the grid to which frames are averaged for the probe."""
MIN_PROBE_PAIRS = 60
"""Fewest real pairs of frames from which a probe is fitted."""


def measure_action_following(
    frames: Tensor, actions: Tensor, predicted: Tensor, predicted_random: Tensor, context: int, num_actions: int
) -> dict[str, Any]:
    """Compare the motion of predicted frames with that of the true ones, and with the action that was asked for.

    Args:
        frames: uint8 [n, t, h, w, 3], real clips.
        actions: int64 [n, t-1] or float32 [n, t-1, k], between their frames.
        predicted, predicted_random: uint8 [n, t - context, h, w, 3], under these actions and under random ones.
        context: context frames of the predictions.
        num_actions: number of discrete actions; 0 for continuous ones.

    Returns:
        ``flow`` (correlation of the shifts of the picture's quarters with the true ones, under the clips' own and under
        random actions) and ``probe``; each None where it cannot be measured.
    """
    ahead = min(PROBE_HORIZON, predicted.shape[1])
    true = frames[:, context - 1 : context + ahead]
    own, random = (torch.cat((true[:, :1], x[:, :ahead]), dim=1) for x in (predicted, predicted_random))
    return {
        "flow": _compare_flow(true, own, random),
        "probe": _probe_actions(frames, actions, own, random, context, num_actions),
    }


def _compare_flow(true: Tensor, own: Tensor, random: Tensor) -> dict[str, float] | None:
    """Correlate the shifts of the scene; None where the real scene does not shift."""
    shifts = [scene_shifts(clips).flatten() for clips in (true, own, random)]
    if shifts[0].std() < 0.05:
        return None
    return {
        "correlation": _correlation(shifts[0], shifts[1]),
        "correlation_random_actions": _correlation(shifts[0], shifts[2]),
    }


def scene_shifts(clips: Tensor) -> Tensor:
    """Shift of each quarter of the picture between consecutive frames: uint8 [n, t, h, w, 3] -> float [n, t-1, 8].

    Quarters, because a scene that turns shifts differently in each of them.
    """
    rows, columns = clips.shape[2] // 2, clips.shape[3] // 2
    quarters = [clips[:, :, y : y + rows, x : x + columns] for y in (0, rows) for x in (0, columns)]
    return torch.cat([_shifts(quarter) for quarter in quarters], dim=-1)


def _shifts(clips: Tensor) -> Tensor:
    """Shift of a part of the picture: uint8 [n, t, h, w, 3] -> float [n, t-1, 2]."""
    before, after = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
    parts = [estimate_scene_shift(x, y) for x, y in zip(before.split(64), after.split(64), strict=True)]
    return torch.cat(parts).unflatten(0, (len(clips), -1))


def _correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation; 0 where one of them is constant."""
    x, y = (v.double() - v.double().mean() for v in (x, y))
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else 0.0


def _probe_actions(
    frames: Tensor, actions: Tensor, own: Tensor, random: Tensor, context: int, num_actions: int
) -> dict[str, Any] | None:
    """Fit the probe on real pairs of one part of the clips; apply it to real and predicted pairs of the others."""
    half = len(frames) // 2
    x, y = _pair_features(frames), _action_targets(actions, num_actions)
    train = x[:half].flatten(0, 1), y[:half].flatten(0, 1)
    if len(train[0]) < MIN_PROBE_PAIRS or not (train[1].std(dim=0) > 0).any():
        return None
    ahead = own.shape[1] - 1
    at = slice(context - 1, context - 1 + ahead)
    labels = y[half:, at].flatten(0, 1)
    pairs = [x[half:, at], _pair_features(own[half:]), _pair_features(random[half:])]
    held = len(train[0]) * 4 // 5  # the last fifth selects the penalty
    fit, val = (train[0][:held], train[1][:held]), (train[0][held:], train[1][held:])
    test = torch.cat([part.flatten(0, 1) for part in pairs])
    scale = train[0].std(dim=0) + 1e-3
    fit, val, test = (fit[0] / scale, fit[1]), (val[0] / scale, val[1]), test / scale
    guesses = ridge_probe(fit, val, test, by_output=False).predictions.split(len(labels))
    score = _accuracy if num_actions else _explained_variance
    names = ("real", "predicted", "predicted_random_actions")
    constant = train[1].mean(dim=0).expand_as(labels)
    return {
        "score": "accuracy" if num_actions else "explained variance",
        **{name: score(guess, labels) for name, guess in zip(names, guesses, strict=True)},
        "constant": score(constant, labels),
        "pairs": len(labels),
    }


def _pair_features(clips: Tensor) -> Tensor:
    """Features of consecutive frames: -> float64 [n, t-1, f].

    The shifts of the picture's quarters and their squares (a linear probe could not tell the middle of three motions
    otherwise), the change at low resolution, and the first frame at a lower one.
    """
    images = clips.flatten(0, 1).permute(0, 3, 1, 2).double() / 255
    small = F.adaptive_avg_pool2d(images, PROBE_GRID).flatten(1).unflatten(0, clips.shape[:2])
    coarse = F.adaptive_avg_pool2d(images, PROBE_GRID // 2).flatten(1).unflatten(0, clips.shape[:2])
    shifts = scene_shifts(clips).double()
    return torch.cat((shifts, shifts.square(), small[:, 1:] - small[:, :-1], coarse[:, :-1]), dim=-1)


def _action_targets(actions: Tensor, num_actions: int) -> Tensor:
    """Targets of the probe, float64 [n, t-1, k]: one-hot for discrete actions."""
    return F.one_hot(actions.long(), num_actions).double() if num_actions else actions.double()


def _accuracy(guess: Tensor, labels: Tensor) -> float:
    return float((guess.argmax(dim=-1) == labels.argmax(dim=-1)).double().mean())


def _explained_variance(guess: Tensor, labels: Tensor) -> float:
    """Mean over the dimensions that vary of 1 - error / variance; 0 for a constant guess, below 0 for a bad one."""
    variance = labels.var(dim=0, correction=0)
    error = (guess - labels).square().mean(dim=0)
    varies = variance > 1e-8
    return float((1 - error[varies] / variance[varies]).mean()) if varies.any() else 0.0
