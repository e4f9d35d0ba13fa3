"""Confidence intervals by a bootstrap over episodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vwm.eval.bootstrap import (
    BootstrapScores,
    average_over_seeds,
    bootstrap_accuracy,
    bootstrap_episode_counts,
    bootstrap_r2,
    percentile_intervals,
    score_difference,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_every_draw_has_the_same_number_of_episodes_and_the_first_has_each_once() -> None:
    counts = bootstrap_episode_counts(7, 50, seed=0)
    assert counts.shape == (51, 7) and (counts.sum(dim=1) == 7).all() and (counts[0] == 1).all()
    assert torch.equal(counts, bootstrap_episode_counts(7, 50, seed=0)) and not torch.equal(
        counts, bootstrap_episode_counts(7, 50, seed=1)
    )
    assert abs(counts[1:].mean() - 1) < 1e-12 and len(counts.unique(dim=0)) > 40


def test_r2_equals_the_formula_for_every_draw() -> None:
    truth, guess = numbers(30, 2), numbers(30, 2, seed=1)
    episodes = torch.arange(30) % 4
    counts = bootstrap_episode_counts(4, 20, seed=0)
    found = bootstrap_r2(truth, guess, episodes, counts)
    for draw, score in zip(counts, torch.cat((found.value[None], found.resampled)), strict=True):
        rows = torch.arange(30).repeat_interleave(draw[episodes].long())
        y, p = truth[rows], guess[rows]
        expected = 1 - (y - p).square().sum(dim=0) / (y - y.mean(dim=0)).square().sum(dim=0)
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)


def test_r2_of_the_truth_is_1_and_of_the_mean_0() -> None:
    truth = numbers(20, 3)
    episodes, counts = torch.arange(20) // 5, bootstrap_episode_counts(4, 10, seed=0)
    assert bootstrap_r2(truth, truth, episodes, counts).value.tolist() == [1, 1, 1]
    of_mean = bootstrap_r2(truth, truth.mean(dim=0).expand(20, -1), episodes, counts).value
    torch.testing.assert_close(of_mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_accuracy_is_counted_over_clips() -> None:
    truth, guess = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 0])
    found = bootstrap_accuracy(
        truth, guess, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([[1.0, 1.0], [0.0, 2.0], [2.0, 0.0]]).double()
    )
    assert found.value.tolist() == [0.6]
    torch.testing.assert_close(found.resampled[:, 0], torch.tensor([0.5, 2 / 3], dtype=torch.float64))


def test_intervals_cover_the_truth_for_similar_clips_of_an_episode() -> None:
    """Accuracy 0.7 of episodes that are right or wrong as a whole; counting clips as independent would cover half."""
    covered, runs, episodes, clips = 0, 200, 40, 8
    generator = torch.Generator().manual_seed(0)
    for run in range(runs):
        right = (torch.rand(episodes, generator=generator) < 0.7).long().repeat_interleave(clips)
        of = torch.arange(episodes).repeat_interleave(clips)
        found = percentile_intervals(
            bootstrap_accuracy(torch.ones_like(right), right, of, bootstrap_episode_counts(episodes, 400, run))
        )[0]
        covered += found.low <= 0.7 <= found.high
    assert 0.9 <= covered / runs <= 0.99


def test_the_interval_of_a_difference_is_narrower_than_its_parts_where_models_err_together() -> None:
    truth, hard = numbers(200, 1), numbers(200, 1, seed=1)
    episodes = torch.arange(200) // 10
    scale = (episodes % 5 + 1).double()[:, None]
    counts = bootstrap_episode_counts(20, 500, seed=0)
    a, b = (bootstrap_r2(truth, truth + hard * scale * share, episodes, counts) for share in (0.20, 0.22))
    (ours,), (theirs,), (less,) = (
        percentile_intervals(a),
        percentile_intervals(b),
        percentile_intervals(score_difference(a, b)),
    )
    assert less.low > 0 and ours.low < theirs.high
    assert less.high - less.low < 0.3 * (ours.high - ours.low)
    assert math.isclose(less.value, ours.value - theirs.value)


def test_intervals_over_seeds_contain_their_variation() -> None:
    drawn = numbers(400, 1) * 1e-3
    draws = [BootstrapScores(torch.tensor([v]).double(), drawn + v) for v in (0.2, 0.4)]
    (found,) = percentile_intervals(average_over_seeds(draws, seed=0))
    assert found.value == pytest.approx(0.3) and 0.19 < found.low < 0.21 and 0.39 < found.high < 0.41
    assert torch.equal(average_over_seeds(draws[:1], seed=0).resampled, draws[0].resampled)


def test_draws_without_variance_are_ignored() -> None:
    truth = torch.tensor([[0.0], [0.0], [1.0], [3.0]]).double()
    counts = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]).double()
    found = bootstrap_r2(truth, truth, torch.tensor([0, 0, 1, 1]), counts)
    assert not found.resampled[0].isfinite().any()
    assert percentile_intervals(found)[0] == (1.0, 1.0, 1.0)
