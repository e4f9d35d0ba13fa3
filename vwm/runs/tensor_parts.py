"""Parts of tensors that are no rectangles: what a process has of a fused matrix under tensor parallelism.

torch.distributed.checkpoint asks such an object for its pieces by methods of fixed names (its ``_Checkpointable``), and
writes and reads each of them at its place in the whole tensor. Its planners expect tensors where they look up values;
those here look up parts, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Piece(NamedTuple):
    """A rectangle of a tensor.

    Attributes:
        start: where it starts in the part.
        whole: where it starts in the whole tensor.
        size: its sides.
    """

    start: tuple[int, ...]
    whole: tuple[int, ...]
    size: tuple[int, ...]


class TensorPart:
    """What this process has of a tensor.

    Args:
        part: its values.
        shape: of the whole tensor.
        pieces: the rectangles of which the part consists; empty ones are left out.
    """

    def __init__(self, part: Tensor, shape: torch.Size, pieces: Iterable[Piece]) -> None:
        self.part = part
        self.shape = shape
        self.pieces = [piece for piece in pieces if torch.Size(piece.size).numel()]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.part)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for number, chunk in enumerate(self.__create_chunk_list__())
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(piece.whole), torch.Size(piece.size)) for piece in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        piece = next(piece for piece in self.pieces if torch.Size(piece.whole) == index.offset)
        found = self.part
        for axis, (start, length) in enumerate(zip(piece.start, piece.size, strict=True)):
            found = found.narrow(axis, start, length)
        return found


class PartSavePlanner(DefaultSavePlanner):
    """Plans a save of tensors and of parts."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """See ``DefaultSavePlanner``."""
        value = self.state_dict[index.fqn]
        return value.__get_tensor_shard__(index) if isinstance(value, TensorPart) else super().lookup_object(index)


class PartLoadPlanner(DefaultLoadPlanner):
    """Plans to load tensors and parts."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """See ``DefaultLoadPlanner``, which prepares tensors only."""
        parts = {name: value for name, value in state_dict.items() if isinstance(value, TensorPart)}
        super().set_up_planner({n: x for n, x in state_dict.items() if n not in parts}, metadata, is_coordinator)
        self.state_dict.update(parts)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """See ``DefaultLoadPlanner``."""
        value = self.state_dict[index.fqn]
        return value.__get_tensor_shard__(index) if isinstance(value, TensorPart) else super().lookup_tensor(index)
