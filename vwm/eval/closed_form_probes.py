"""Closed-form probes: ridge regression and nearest neighbors, over all features of a clip.

Legend: n clips to fit, m clips to predict, f features of a clip, o outputs, a strengths of the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE_STRENGTHS = torch.logspace(-6, 4, 31, dtype=torch.float64)
"""Strengths of the penalty, in units of the mean eigenvalue, so that they suit features of any scale and number."""
NEIGHBOR_COUNTS = (1, 2, 5, 10, 20, 50, 100)
KNN_TEMPERATURE = 0.07
"""Temperature of the neighbors' weights exp(similarity / temperature), from DINO (arXiv 2104.14294)."""
FEATURE_CHUNK = 8192
"""Number of features that are converted to float64 at a time."""


class ClosedFormPredictions(NamedTuple):
    """Predictions float64 [m, o] for the test clips, and the setting selected on the validation part, [o] or [1]."""

    predictions: Tensor
    selected: Tensor


def chunked_inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Compute inner products of clips in float64: [n, f], [m, f] -> [n, m]; in chunks of features, to limit memory."""
    total = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(FEATURE_CHUNK, dim=1), y.split(FEATURE_CHUNK, dim=1), strict=True):
        total += a.double() @ b.double().T
    return total


def ridge_regression_path(
    x: Tensor, y: Tensor, others: Sequence[Tensor], strengths: Tensor = RIDGE_STRENGTHS
) -> list[Tensor]:
    """Fit ridge regression for all strengths of the penalty at once, from one eigendecomposition.

    Minimizes |y - x w|^2 + alpha |w|^2, with alpha the strength times the mean eigenvalue of x x^T. Where there are no
    more features than clips it uses x^T x [f, f] (primal), else x x^T [n, n] (dual), with the same result.

    Args:
        x: [n, f], centered.
        y: float64 [n, o], centered.
        others: [m, f] each, centered by the same mean.
        strengths: float64 [a].

    Returns:
        Predictions float64 [a, m, o], one for each of ``others``.
    """
    strengths = strengths.to(x.device)
    primal = x.shape[1] <= x.shape[0]
    product = x.double().T @ x.double() if primal else chunked_inner_products(x, x)
    values, vectors = torch.linalg.eigh(product)
    right = vectors.T @ (x.double().T @ y if primal else y)
    mean = (values.sum() / len(x)).clamp(min=1e-100)  # the same sum in both forms; 0 for constant features
    shrink = 1 / (values.clamp(min=0) + strengths[:, None] * mean)
    left = [(other.double() if primal else chunked_inner_products(other, x)) @ vectors for other in others]
    return [torch.einsum("mr,ar,ro->amo", part, shrink, right) for part in left]


def ridge_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: Tensor, by_output: bool = True
) -> ClosedFormPredictions:
    """Fit ridge regression, with the penalty of the smallest squared error on the validation part.

    Args:
        train, val: features [., f] and labels float64 [., o].
        test: features [m, f].
        by_output: select a penalty for every output, rather than one for all.
    """
    features, labels = train
    mean, offset = features.mean(dim=0), labels.mean(dim=0)
    on_val, on_test = ridge_regression_path(features - mean, labels - offset, [val[0] - mean, test - mean])
    return _select_setting(on_val + offset, val[1], on_test + offset, RIDGE_STRENGTHS.to(features.device), by_output)


def knn_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: Tensor, by_output: bool = True
) -> ClosedFormPredictions:
    """Predict the weighted mean of the nearest neighbors' labels, by cosine similarity.

    Args:
        train, val: features [., f] and labels float64 [., o].
        test: features [m, f].
        by_output: select a number of neighbors for every output, rather than one for all.
    """
    mean = train[0].mean(dim=0)
    base, *others = (F.normalize(x - mean, dim=1) for x in (train[0], val[0], test))
    counts = torch.tensor([k for k in NEIGHBOR_COUNTS if k <= len(base)], device=base.device)
    on_val, on_test = (_knn_predictions(chunked_inner_products(x, base), train[1], counts) for x in others)
    return _select_setting(on_val, val[1], on_test, counts.double(), by_output)


def _select_setting(
    on_val: Tensor, labels: Tensor, on_test: Tensor, settings: Tensor, by_output: bool
) -> ClosedFormPredictions:
    """Select the predictions with the setting of the smallest error on the validation part.

    Args:
        on_val: predictions for the validation part with each setting, [a, v, o].
        labels: labels of the validation part, [v, o].
        on_test: predictions for the test part, [a, m, o].
        settings: [a].
        by_output: select for every output, rather than one for all.
    """
    error = (on_val - labels).square().mean(dim=1)
    best = error.argmin(dim=0) if by_output else error.sum(dim=1).argmin().expand(labels.shape[1])
    predictions = on_test.gather(0, best[None, None].expand(1, *on_test.shape[1:]))[0]
    return ClosedFormPredictions(predictions, settings[best if by_output else best[:1]])


def _knn_predictions(similarity: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Average the labels of the nearest clips: similarity [m, n], float64 [n, o], counts [a] -> [a, m, o]."""
    nearest, indices = similarity.topk(int(counts.max()), dim=1)
    weights = ((nearest - nearest[:, :1]) / KNN_TEMPERATURE).exp()
    total = (weights[..., None] * labels[indices]).cumsum(dim=1)
    return (total / weights.cumsum(dim=1)[..., None])[:, counts - 1].transpose(0, 1)
