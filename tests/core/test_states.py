"""States as values: replacing the states of some worlds in a batch."""

import torch

from vwm.core.states import replace_worlds


def test_replace_worlds_fills_masked_positions_in_order() -> None:
    old = (torch.arange(4), {"x": torch.zeros(4, 2)})
    new = (torch.tensor([10, 11]), {"x": torch.tensor([[1.0, 2], [3, 4]])})
    number, nested = replace_worlds(torch.tensor([False, True, False, True]), new, old)
    assert number.tolist() == [0, 10, 2, 11]
    assert nested["x"].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert old[0].tolist() == [0, 1, 2, 3]
