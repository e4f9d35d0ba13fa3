"""Ridge regression and k-nearest neighbors equal their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vwm.eval import closed_form_probes
from vwm.eval.closed_form_probes import (
    RIDGE_STRENGTHS,
    chunked_inner_products,
    knn_probe,
    ridge_probe,
    ridge_regression_path,
)


def make_data(clips: int, features: int, outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centered features and labels, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clips, features, dtype=torch.float64, generator=generator)
    y = torch.randn(clips, outputs, dtype=torch.float64, generator=generator)
    return x - x.mean(dim=0), y - y.mean(dim=0)


def ridge_formula(x: Tensor, y: Tensor, new: Tensor, strength: Tensor) -> Tensor:
    """new (x^T x + alpha)^-1 x^T y."""
    alpha = strength * x.square().sum() / len(x)
    return new @ torch.linalg.solve(x.T @ x + alpha * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


@pytest.mark.parametrize("features", [5, 29, 30, 31, 80])
def test_primal_and_dual_ridge_solutions_equal_the_formula(features: int) -> None:
    x, y = make_data(30, features)
    new, _ = make_data(7, features, seed=1)
    (path,) = ridge_regression_path(x, y, [new])
    for strength, predictions in zip(RIDGE_STRENGTHS[6:], path[6:], strict=True):
        torch.testing.assert_close(predictions, ridge_formula(x, y, new, strength), rtol=1e-8, atol=1e-9)


def test_inner_products_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = make_data(6, 50)
    y, _ = make_data(4, 50, seed=1)
    expected = chunked_inner_products(x, y)
    monkeypatch.setattr(closed_form_probes, "FEATURE_CHUNK", 7)
    torch.testing.assert_close(chunked_inner_products(x, y), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected, x @ y.T, rtol=0, atol=1e-12)


def test_a_linear_map_is_recovered() -> None:
    x = torch.randn(200, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 4
    y = x @ torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 7
    result = ridge_probe((x[:120], y[:120]), (x[120:160], y[120:160]), x[160:])
    torch.testing.assert_close(result.predictions, y[160:], rtol=0, atol=1e-4)
    assert (result.selected == RIDGE_STRENGTHS[0]).all()


def test_the_ridge_strength_is_selected_per_output() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 60, dtype=torch.float64, generator=generator)
    noise = torch.randn(120, 1, dtype=torch.float64, generator=generator)
    y = torch.cat((x[:, :1] * 2 + x[:, 1:2], noise), dim=1)
    train, val, test = (x[:60], y[:60]), (x[60:90], y[60:90]), x[90:]
    result = ridge_probe(train, val, test)
    assert result.selected[0] < result.selected[1] / 100
    single = [ridge_probe((x[:60], y[:60, i : i + 1]), (x[60:90], y[60:90, i : i + 1]), test) for i in range(2)]
    torch.testing.assert_close(result.predictions, torch.cat([s.predictions for s in single], dim=1), rtol=0, atol=1e-9)
    shared = ridge_probe(train, val, test, by_output=False)
    assert shared.selected.shape == (1,) and result.selected[0] <= shared.selected[0] <= result.selected[1]


def test_constant_features_have_no_effect() -> None:
    x, y = make_data(20, 4)
    with_constant = torch.cat((x, torch.full((20, 3), 5.0, dtype=torch.float64)), dim=1)
    split = [(rows[:10], rows[10:15], rows[15:]) for rows in (x, with_constant)]
    expected, actual = (ridge_probe((a, y[:10]), (b, y[10:15]), c).predictions for a, b, c in split)
    torch.testing.assert_close(expected, actual, rtol=0, atol=1e-10)
    from_zeros = ridge_probe((x[:10] * 0, y[:10]), (x[10:15] * 0, y[10:15]), x[15:] * 0).predictions
    torch.testing.assert_close(from_zeros, y[:10].mean(dim=0).expand(5, -1))


def test_the_nearest_neighbor_of_a_training_clip_is_itself() -> None:
    x, y = make_data(40, 8)
    result = knn_probe((x, y), (x[:9], y[:9]), x[9:20])
    assert (result.selected == 1).all()
    torch.testing.assert_close(result.predictions, y[9:20])


def test_neighbors_are_weighted_by_similarity() -> None:
    angles = torch.tensor([0.0, 0.3, 2.0, 4.0], dtype=torch.float64)
    x = torch.stack((angles.cos(), angles.sin()), dim=1)
    y = torch.tensor([[0.0], [1.0], [5.0], [9.0]], dtype=torch.float64)
    predictions = closed_form_probes._knn_predictions(x[:1] @ x.T, y, torch.tensor([1, 2]))
    weight = torch.tensor(0.3 - 0.0).double().cos().sub(1).div(closed_form_probes.KNN_TEMPERATURE).exp()
    torch.testing.assert_close(predictions[:, 0, 0], torch.stack((weight * 0, weight / (1 + weight))))


def test_many_neighbors_are_selected_for_noisy_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 30, generator=generator)
    y = torch.randn(600, 4, dtype=torch.float64, generator=generator)
    result = knn_probe((x[:300], y[:300]), (x[300:450], y[300:450]), x[450:])
    assert (result.selected >= 50).all()
