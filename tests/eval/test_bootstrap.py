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


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_resamples_have_equal_size_and_the_first_is_the_original_sample() -> None:
    counts = bootstrap_episode_counts(7, 50, seed=0)
    assert counts.shape == (51, 7) and (counts.sum(dim=1) == 7).all() and (counts[0] == 1).all()
    assert torch.equal(counts, bootstrap_episode_counts(7, 50, seed=0)) and not torch.equal(
        counts, bootstrap_episode_counts(7, 50, seed=1)
    )
    assert abs(counts[1:].mean() - 1) < 1e-12 and len(counts.unique(dim=0)) > 40


def test_r2_equals_the_formula_for_every_resample() -> None:
    truth, prediction = random_tensor(30, 2), random_tensor(30, 2, seed=1)
    episodes = torch.arange(30) % 4
    counts = bootstrap_episode_counts(4, 20, seed=0)
    scores = bootstrap_r2(truth, prediction, episodes, counts)
    for count, score in zip(counts, torch.cat((scores.value[None], scores.resampled)), strict=True):
        rows = torch.arange(30).repeat_interleave(count[episodes].long())
        y, p = truth[rows], prediction[rows]
        expected = 1 - (y - p).square().sum(dim=0) / (y - y.mean(dim=0)).square().sum(dim=0)
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)


def test_r2_is_1_for_the_truth_and_0_for_the_mean() -> None:
    truth = random_tensor(20, 3)
    episodes, counts = torch.arange(20) // 5, bootstrap_episode_counts(4, 10, seed=0)
    assert bootstrap_r2(truth, truth, episodes, counts).value.tolist() == [1, 1, 1]
    r2_of_mean = bootstrap_r2(truth, truth.mean(dim=0).expand(20, -1), episodes, counts).value
    torch.testing.assert_close(r2_of_mean, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_accuracy_is_the_fraction_of_clips() -> None:
    truth, prediction = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 0])
    scores = bootstrap_accuracy(
        truth, prediction, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([[1.0, 1.0], [0.0, 2.0], [2.0, 0.0]]).double()
    )
    assert scores.value.tolist() == [0.6]
    torch.testing.assert_close(scores.resampled[:, 0], torch.tensor([0.5, 2 / 3], dtype=torch.float64))


def test_intervals_cover_the_truth_when_clips_of_an_episode_are_correlated() -> None:
    """Accuracy 0.7 where all clips of an episode are right or wrong; treating clips as independent would cover half."""
    covered, runs, episodes, clips = 0, 200, 40, 8
    generator = torch.Generator().manual_seed(0)
    for run in range(runs):
        correct = (torch.rand(episodes, generator=generator) < 0.7).long().repeat_interleave(clips)
        episode_of_clip = torch.arange(episodes).repeat_interleave(clips)
        interval = percentile_intervals(
            bootstrap_accuracy(
                torch.ones_like(correct), correct, episode_of_clip, bootstrap_episode_counts(episodes, 400, run)
            )
        )[0]
        covered += interval.low <= 0.7 <= interval.high
    assert 0.9 <= covered / runs <= 0.99


def test_the_interval_of_a_difference_is_narrow_when_errors_are_correlated() -> None:
    truth, noise = random_tensor(200, 1), random_tensor(200, 1, seed=1)
    episodes = torch.arange(200) // 10
    scale = (episodes % 5 + 1).double()[:, None]
    counts = bootstrap_episode_counts(20, 500, seed=0)
    a, b = (bootstrap_r2(truth, truth + noise * scale * share, episodes, counts) for share in (0.20, 0.22))
    (interval_a,), (interval_b,), (difference,) = (
        percentile_intervals(a),
        percentile_intervals(b),
        percentile_intervals(score_difference(a, b)),
    )
    assert difference.low > 0 and interval_a.low < interval_b.high
    assert difference.high - difference.low < 0.3 * (interval_a.high - interval_a.low)
    assert math.isclose(difference.value, interval_a.value - interval_b.value)


def test_intervals_over_seeds_include_the_variation_between_seeds() -> None:
    variation = random_tensor(400, 1) * 1e-3
    scores_by_seed = [BootstrapScores(torch.tensor([v]).double(), variation + v) for v in (0.2, 0.4)]
    (interval,) = percentile_intervals(average_over_seeds(scores_by_seed, seed=0))
    assert interval.value == pytest.approx(0.3) and 0.19 < interval.low < 0.21 and 0.39 < interval.high < 0.41
    assert torch.equal(average_over_seeds(scores_by_seed[:1], seed=0).resampled, scores_by_seed[0].resampled)


def test_resamples_without_variance_are_ignored() -> None:
    truth = torch.tensor([[0.0], [0.0], [1.0], [3.0]]).double()
    counts = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]).double()
    scores = bootstrap_r2(truth, truth, torch.tensor([0, 0, 1, 1]), counts)
    assert not scores.resampled[0].isfinite().any()
    assert percentile_intervals(scores)[0] == (1.0, 1.0, 1.0)
