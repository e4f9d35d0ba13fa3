"""Ways of coming to a policy beside one another: exact means and ratios, and intervals that cover the truth."""

import numpy as np
import pytest

from vwm.eval.return_comparison import compare_returns

RNG = np.random.default_rng(0)


def test_means_differences_and_ratios_are_exact():
    found = compare_returns({"random": [[1, 3]], "world": [[5, 7], [9, 3]], "real": [[12, 12]]}, "random", "real")
    assert {name: score.value for name, score in found.means.items()} == {"random": 2, "world": 6, "real": 12}
    assert found.differences["world"]["random"].value == 4 == -found.differences["random"]["world"].value
    assert list(found.normalized) == ["world"]
    assert found.normalized["world"].value == pytest.approx((6 - 2) / (12 - 2))


def test_of_returns_that_never_vary_the_interval_is_the_value():
    found = compare_returns({"random": [[0] * 5], "world": [[3] * 5], "real": [[4] * 5]}, "random", "real")
    assert found.means["world"] == pytest.approx((3, 3, 3))
    assert found.normalized["world"] == pytest.approx((0.75, 0.75, 0.75))


def test_episodes_are_drawn_together():
    # The world's agent earns one more than random in every episode: its lead is certain, its mean return is not.
    luck = RNG.normal(0, 10, 50)
    found = compare_returns({"random": [luck], "world": [luck + 1]}, "random")
    assert found.differences["world"]["random"] == pytest.approx((1, 1, 1))
    assert found.means["world"].high - found.means["world"].low > 3


def test_runs_are_drawn_too():
    # Two runs of one way that differ much: equal episodes do not make its mean certain.
    found = compare_returns({"random": [[0] * 9], "world": [[1] * 9, [5] * 9]}, "random")
    assert found.means["world"] == pytest.approx((3, 1, 5))


def test_the_interval_of_the_mean_is_the_normal_distributions():
    values = RNG.normal(7, 2, 400)
    found = compare_returns({"random": [values]}, "random", draws=20_000).means["random"]
    error = values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        played = {name: [rng.normal(mean, 2, 60)] for name, mean in (("random", 1), ("world", 4), ("real", 5))}
        ratio = compare_returns(played, "random", "real", draws=1000).normalized["world"]
        covered += ratio.low <= 0.75 <= ratio.high
    assert 0.89 <= covered / 200 <= 0.985


def test_no_ratio_to_an_agent_that_is_not_surely_better_than_random():
    values = RNG.normal(0, 1, 20)
    for real in (values, values - 1, RNG.normal(0, 1, 20)):
        assert compare_returns(
            {"random": [values], "a": [values + 1], "real": [real]}, "random", "real"
        ).normalized == {"a": None}
    assert compare_returns({"random": [values], "a": [values + 1]}, "random").normalized == {"a": None}


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="no 'real' among random, a"):
        compare_returns({"random": [[1]], "a": [[1]]}, "random", "real")
    with pytest.raises(ValueError, match=r"the same number of episodes, got \[1, 2\]"):
        compare_returns({"random": [[1]], "a": [[1, 2]]}, "random")
