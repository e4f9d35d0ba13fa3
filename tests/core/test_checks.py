"""Counts are 1 or more."""

import pytest

from vwm.core.checks import check_positive


def test_the_setting_that_is_too_small_is_named() -> None:
    check_positive(steps=1, horizon=None)
    with pytest.raises(ValueError, match="horizon must be 1 or more, got 0"):
        check_positive(steps=3, horizon=0, episodes=-1)
