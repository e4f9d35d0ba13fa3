"""Non-finite losses are reported by name before they change a weight."""

import math

import pytest
import torch

from vwm.rl.optimizer_step import check_finite


def test_tensors_become_floats_under_the_same_names() -> None:
    assert check_finite({"loss": torch.tensor(1.5, requires_grad=True), "norm": 2.0}) == {"loss": 1.5, "norm": 2.0}
    assert check_finite({}) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_all_non_finite_values_are_reported(bad: float) -> None:
    with pytest.raises(FloatingPointError, match=f"^actor is {bad}, critic is {bad}: .*lower the learning rate"):
        check_finite({"actor": torch.tensor(bad), "world": torch.tensor(1.0), "critic": bad})
