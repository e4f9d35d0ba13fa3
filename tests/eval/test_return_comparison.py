"""Comparison of returns: exact means and ratios, and confidence intervals that cover the truth."""

import numpy as np
import pytest

from vwm.eval.return_comparison import compare_returns

RNG = np.random.default_rng(0)


def test_means_differences_and_ratios_are_exact():
    comparison = compare_returns({"random": [[1, 3]], "world": [[5, 7], [9, 3]], "real": [[12, 12]]}, "random", "real")
    assert {name: score.value for name, score in comparison.means.items()} == {"random": 2, "world": 6, "real": 12}
    assert comparison.differences["world"]["random"].value == 4 == -comparison.differences["random"]["world"].value
    assert list(comparison.normalized) == ["world"]
    assert comparison.normalized["world"].value == pytest.approx((6 - 2) / (12 - 2))


def test_the_interval_of_constant_returns_is_the_value():
    comparison = compare_returns({"random": [[0] * 5], "world": [[3] * 5], "real": [[4] * 5]}, "random", "real")
    assert comparison.means["world"] == pytest.approx((3, 3, 3))
    assert comparison.normalized["world"] == pytest.approx((0.75, 0.75, 0.75))


def test_episodes_are_resampled_jointly_across_groups():
    # The agent's return exceeds random by 1 in every episode: the difference is certain, its mean return is not.
    noise = RNG.normal(0, 10, 50)
    comparison = compare_returns({"random": [noise], "world": [noise + 1]}, "random")
    assert comparison.differences["world"]["random"] == pytest.approx((1, 1, 1))
    assert comparison.means["world"].high - comparison.means["world"].low > 3


def test_runs_are_resampled_too():
    # Two runs of one group that differ much: equal episodes do not make its mean certain.
    comparison = compare_returns({"random": [[0] * 9], "world": [[1] * 9, [5] * 9]}, "random")
    assert comparison.means["world"] == pytest.approx((3, 1, 5))


def test_the_interval_of_the_mean_matches_the_normal_approximation():
    values = RNG.normal(7, 2, 400)
    comparison = compare_returns({"random": [values]}, "random", draws=20_000).means["random"]
    error = values.std() / np.sqrt(400)
    assert comparison.value == pytest.approx(values.mean())
    assert (comparison.low, comparison.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_the_interval_covers_the_true_ratio_at_its_nominal_rate():
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        returns = {name: [rng.normal(mean, 2, 60)] for name, mean in (("random", 1), ("world", 4), ("real", 5))}
        ratio = compare_returns(returns, "random", "real", draws=1000).normalized["world"]
        covered += ratio.low <= 0.75 <= ratio.high
    assert 0.89 <= covered / 200 <= 0.985


def test_no_ratio_without_a_reference_significantly_better_than_random():
    values = RNG.normal(0, 1, 20)
    for real in (values, values - 1, RNG.normal(0, 1, 20)):
        assert compare_returns(
            {"random": [values], "a": [values + 1], "real": [real]}, "random", "real"
        ).normalized == {"a": None}
    assert compare_returns({"random": [values], "a": [values + 1]}, "random").normalized == {"a": None}


def test_rejects_unknown_references_and_unequal_episode_counts():
    with pytest.raises(ValueError, match="no 'real' among random, a"):
        compare_returns({"random": [[1]], "a": [[1]]}, "random", "real")
    with pytest.raises(ValueError, match=r"the same number of episodes, got \[1, 2\]"):
        compare_returns({"random": [[1]], "a": [[1, 2]]}, "random")
