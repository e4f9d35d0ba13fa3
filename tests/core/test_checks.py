"""Checks of counts."""

import pytest

from vwm.core.checks import check_positive


def test_check_positive_names_the_first_setting_below_1() -> None:
    check_positive(steps=1, horizon=None)
    with pytest.raises(ValueError, match="horizon must be 1 or more, got 0"):
        check_positive(steps=3, horizon=0, episodes=-1)
