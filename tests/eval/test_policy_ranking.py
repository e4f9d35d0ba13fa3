"""The ranking of policies by a world, against SciPy and values by hand."""

import numpy as np
import pytest
from scipy import stats

from vwm.eval.policy_ranking import average_ranks, rank_policies, rank_violation


def test_correlations_equal_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    real, imagined = rng.integers(0, 5, (9, 1)).astype(float), rng.integers(0, 4, (9, 1)).astype(float)
    ranking = rank_policies(list(real), list(imagined), draws=5)
    assert ranking.spearman.value == pytest.approx(stats.spearmanr(real[:, 0], imagined[:, 0]).statistic, abs=1e-12)
    assert ranking.pearson.value == pytest.approx(stats.pearsonr(real[:, 0], imagined[:, 0]).statistic, abs=1e-12)
    assert average_ranks(real[:, 0]).tolist() == (stats.rankdata(real[:, 0]) - 1).tolist()


def test_the_rank_violation_is_the_largest_loss_by_the_worlds_order() -> None:
    real = np.array([0.0, 1.0, 5.0, 9.0])
    assert rank_violation(real, real * 2 - 3) == 0
    # The world puts the policy of 5 below those of 0 and 1: the losses of the four are 5, 4, 5 and 0.
    assert rank_violation(real, np.array([1.0, 2.0, 0.0, 3.0])) == (5 + 4 + 5 + 0) / 4


def test_intervals_shrink_with_more_episodes() -> None:
    rng = np.random.default_rng(1)
    quality = np.arange(8.0)

    def width(episodes: int) -> float:
        real, imagined = (list(quality[:, None] + rng.normal(0, 4, (8, episodes))) for _ in range(2))
        ranking = rank_policies(real, imagined)
        assert -1 <= ranking.spearman.low <= ranking.spearman.high <= 1
        return ranking.spearman.high - ranking.spearman.low

    assert width(400) < width(8) / 2


def test_policies_without_a_difference_have_no_correlation() -> None:
    ranking = rank_policies([[1.0]] * 3, [[1.0], [2.0], [3.0]], draws=10)
    assert np.isnan(ranking.spearman.value) and np.isnan(ranking.spearman.low)


def test_too_few_policies_are_named() -> None:
    with pytest.raises(ValueError, match="needs 3 policies or more"):
        rank_policies([[1.0], [2.0]], [[1.0], [2.0]])
