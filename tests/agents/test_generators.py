"""Drawing goes on from a checkpoint, on a machine with other GPUs too."""

import torch

from vwm.agents.generators import generators, restore


def test_drawing_goes_on_where_it_stood() -> None:
    kept = generators()
    drawn = torch.rand(5)
    assert not torch.equal(torch.rand(5), drawn)
    restore(kept)
    assert torch.equal(torch.rand(5), drawn)


def test_a_checkpoint_of_a_machine_with_more_gpus_is_taken_up() -> None:
    kept = generators()
    drawn = torch.rand(5)
    gpu = kept["random_cuda"][0] if kept["random_cuda"] else torch.zeros(16, dtype=torch.uint8)
    restore({**kept, "random_cuda": [*kept["random_cuda"], gpu]})
    assert torch.equal(torch.rand(5), drawn)
