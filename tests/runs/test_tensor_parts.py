"""Parts of tensors in checkpoint folders; tests/train/test_sharded_training.py saves them by several processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vwm.runs.checkpoint_folders import CheckpointFolders
from vwm.runs.tensor_parts import Piece, TensorPart


def test_a_process_reads_its_pieces_of_a_tensor(tmp_path: Path) -> None:
    """Rows 1, 2, 5 and 6 of columns 1 and 2; and a whole tensor."""
    folders = CheckpointFolders(str(tmp_path))
    whole = torch.arange(24.0).view(8, 3)
    folders.save(1, {"state_dict": {"a": whole, "b": whole + 1}, "global_step": 1})
    folders.wait()
    pieces = [Piece((0, 0), (1, 1), (2, 2)), Piece((2, 0), (3, 1), (0, 2)), Piece((2, 0), (5, 1), (2, 2))]

    def like(path: str) -> Tensor | None:
        return torch.zeros(4, 2) if path == "state_dict/a" else None

    loaded = folders.load(like, lambda path, tensor: TensorPart(tensor, whole.shape, pieces))
    assert torch.equal(loaded["state_dict"]["a"], whole[[1, 2, 5, 6], 1:])
    assert torch.equal(loaded["state_dict"]["b"], whole + 1)


def test_pieces_are_written_at_their_places(tmp_path: Path) -> None:
    """By one process, which has all of them, in another order."""
    folders = CheckpointFolders(str(tmp_path))
    whole = torch.arange(8.0).view(4, 2)
    part = whole[[2, 3, 0, 1]]
    pieces = [Piece((0, 0), (2, 0), (2, 2)), Piece((2, 0), (0, 0), (2, 2))]
    folders.save(3, {"state_dict": {"a": part}}, lambda path, tensor: TensorPart(tensor, whole.shape, pieces))
    part.zero_()  # what is written was copied before
    folders.wait()
    assert torch.equal(folders.load()["state_dict"]["a"], whole)
