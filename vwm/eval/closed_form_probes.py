"""Closed-form probes: ridge regression and nearest neighbours, over all features of a clip.

Legend: n clips to fit, m clips to predict, f features of a clip, o outputs, a strengths of the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE_STRENGTHS = torch.logspace(-6, 4, 31, dtype=torch.float64)
"""Of the penalty, in units of the mean eigenvalue, so that they suit features of every scale and number."""
NEIGHBOR_COUNTS = (1, 2, 5, 10, 20, 50, 100)
KNN_TEMPERATURE = 0.07
"""Of the neighbours' weights exp(similarity / temperature), as DINO has it (arXiv 2104.14294)."""
FEATURE_CHUNK = 8192
"""Features that are taken to float64 at a time."""


class ClosedFormPredictions(NamedTuple):
    """Predictions float64 [m, o] of the clips to judge on, and what the validation part chose for them, [o] or [1]."""

    predictions: Tensor
    chosen: Tensor


def chunked_inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of clips in float64: [n, f], [m, f] -> [n, m]; some features at a time, to bound the memory."""
    total = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(FEATURE_CHUNK, dim=1), y.split(FEATURE_CHUNK, dim=1), strict=True):
        total += a.double() @ b.double().T
    return total


def ridge_regression_path(
    x: Tensor, y: Tensor, others: Sequence[Tensor], strengths: Tensor = RIDGE_STRENGTHS
) -> list[Tensor]:
    """Ridge regression at all strengths of the penalty at once, from one eigendecomposition.

    Minimises |y - x w|^2 + alpha |w|^2, with alpha the strength times the mean eigenvalue of x x^T. Where there are no
    more features than clips it goes through x^T x [f, f] (primal), else through x x^T [n, n] (dual): the same answer.

    Args:
        x: [n, f], centred.
        y: float64 [n, o], centred.
        others: [m, f] each, centred likewise.
        strengths: float64 [a].

    Returns:
        Predictions float64 [a, m, o], one for each of ``others``.
    """
    strengths = strengths.to(x.device)
    primal = x.shape[1] <= x.shape[0]
    product = x.double().T @ x.double() if primal else chunked_inner_products(x, x)
    values, vectors = torch.linalg.eigh(product)
    right = vectors.T @ (x.double().T @ y if primal else y)
    mean = (values.sum() / len(x)).clamp(min=1e-100)  # the same sum in both forms; 0 where nothing ever changes
    shrink = 1 / (values.clamp(min=0) + strengths[:, None] * mean)
    left = [(other.double() if primal else chunked_inner_products(other, x)) @ vectors for other in others]
    return [torch.einsum("mr,ar,ro->amo", part, shrink, right) for part in left]


def ridge_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: Tensor, by_output: bool = True
) -> ClosedFormPredictions:
    """Ridge regression, its penalty chosen by the squared error on the validation part.

    Args:
        train, val: features [., f] and labels float64 [., o].
        test: features [m, f].
        by_output: choose a penalty for every output, rather than one for all.
    """
    features, labels = train
    mean, offset = features.mean(dim=0), labels.mean(dim=0)
    guessed, judged = ridge_regression_path(features - mean, labels - offset, [val[0] - mean, test - mean])
    return _select_setting(guessed + offset, val[1], judged + offset, RIDGE_STRENGTHS.to(features.device), by_output)


def knn_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: Tensor, by_output: bool = True
) -> ClosedFormPredictions:
    """The mean of the nearest neighbours' labels by cosine similarity, the nearer the heavier.

    Args:
        train, val: features [., f] and labels float64 [., o].
        test: features [m, f].
        by_output: choose a number of neighbours for every output, rather than one for all.
    """
    mean = train[0].mean(dim=0)
    base, *others = (F.normalize(x - mean, dim=1) for x in (train[0], val[0], test))
    counts = torch.tensor([k for k in NEIGHBOR_COUNTS if k <= len(base)], device=base.device)
    guessed, judged = (_knn_predictions(chunked_inner_products(x, base), train[1], counts) for x in others)
    return _select_setting(guessed, val[1], judged, counts.double(), by_output)


def _select_setting(
    guessed: Tensor, labels: Tensor, judged: Tensor, settings: Tensor, by_output: bool
) -> ClosedFormPredictions:
    """The predictions with the setting that did best on the validation part.

    Args:
        guessed: of the validation part, [a, v, o], one for each of a settings.
        labels: what was right, [v, o].
        judged: of the test part, [a, m, o].
        settings: [a].
        by_output: choose for every output by itself, rather than one for all.
    """
    error = (guessed - labels).square().mean(dim=1)
    best = error.argmin(dim=0) if by_output else error.sum(dim=1).argmin().expand(labels.shape[1])
    picked = judged.gather(0, best[None, None].expand(1, *judged.shape[1:]))[0]
    return ClosedFormPredictions(picked, settings[best if by_output else best[:1]])


def _knn_predictions(similarity: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Means over the nearest: [m, n], float64 [n, o] and counts [a] -> [a, m, o]."""
    near, which = similarity.topk(int(counts.max()), dim=1)
    weights = ((near - near[:, :1]) / KNN_TEMPERATURE).exp()
    total = (weights[..., None] * labels[which]).cumsum(dim=1)
    return (total / weights.cumsum(dim=1)[..., None])[:, counts - 1].transpose(0, 1)
