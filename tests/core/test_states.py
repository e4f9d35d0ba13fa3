"""States as values: replacing the states of some worlds in a batch."""

import torch

from vwm.core.states import replace_worlds, split_worlds


def test_replace_worlds_fills_masked_positions_in_order() -> None:
    old = (torch.arange(4), {"x": torch.zeros(4, 2)})
    new = (torch.tensor([10, 11]), {"x": torch.tensor([[1.0, 2], [3, 4]])})
    number, nested = replace_worlds(torch.tensor([False, True, False, True]), new, old)
    assert number.tolist() == [0, 10, 2, 11]
    assert nested["x"].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert old[0].tolist() == [0, 1, 2, 3]


def test_split_worlds_gives_states_of_one_world_that_share_no_memory() -> None:
    numbers, values = torch.arange(3), torch.arange(12.0).view(3, 2, 2)
    first, second, third = split_worlds((numbers, {"x": values.mT}))
    assert third[0].tolist() == [2] and third[1]["x"].tolist() == [[[8, 10], [9, 11]]]
    assert second[1]["x"].is_contiguous() and second[1]["x"].untyped_storage().nbytes() == 4 * 4
    values.zero_()
    first[0].fill_(9)
    assert second[1]["x"].tolist() == [[[4, 6], [5, 7]]] and numbers.tolist() == [0, 1, 2]
