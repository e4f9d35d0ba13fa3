"""Checkpoints that all processes of a training write together: a folder of safetensors files and an index.

    checkpoints/step-00000500/
      index.json              written last: a folder without it is not complete; shapes, places and checksums
      trainer.ckpt            everything but large tensors (see ``vwm.runs.checkpoints``)
      rank-00000.safetensors  the parts of tensors that one process had

torch.distributed.checkpoint plans who writes and reads which part; the classes here are its storage. Its own stores the
plan as a pickle, which may run code. These files hold data only, on disk or at any address of fsspec (s3://, gs://).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from vwm.runs.checkpoint_files import INDEX, FolderFiles
from vwm.runs.checkpoints import CheckpointError

TRAINER_FILE = "trainer.ckpt"
FORMAT = "vwm.checkpoint_folder.1"
READS = 16
"""Parts of tensors that are read at once."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""By their names in safetensors."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_index(folder: FolderFiles) -> dict[str, Any]:
    """Read and check the index of a checkpoint, which may come from anybody.

    Raises:
        CheckpointError: there is none.
        StoreError: the store cannot be reached.
    """
    try:
        index = folder.read_json(INDEX)
        _check_index(index)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: the checkpoint is not complete") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder.address}/{INDEX}: is no index of a checkpoint ({error})") from error
    return dict(index)


def _check_index(index: Any) -> None:
    """Raise an error unless every part of a tensor lies inside it, and in a file of this folder."""
    if index["format"] != FORMAT:
        raise ValueError(f"its format is {index['format']!r}, not {FORMAT!r}")
    for name, size in index["files"].items():
        if "/" in name or "\\" in name or name.startswith(".") or not (size["bytes"] >= 0 and size["crc32"] >= 0):
            raise ValueError(f"{name!r} is no file of the folder")
    for name, tensor in index["tensors"].items():
        shape, dtype = tensor["shape"], DTYPES[tensor["dtype"]]
        for part in tensor["parts"]:
            inside = all(
                0 <= first and 0 <= count and first + count <= side
                for first, count, side in zip(part["offsets"], part["sizes"], shape, strict=True)
            )
            count = torch.Size(part["sizes"]).numel() * dtype.itemsize
            file_end = index["files"][part["file"]]["bytes"]
            if not inside or count != part["bytes"] or not 0 <= part["start"] <= file_end - count:
                raise ValueError(f"a part of {name} does not lie inside of it, or of its file")


class FolderWriter(StorageWriter):
    """Writes the parts of this process; the coordinator writes what is no tensor, and last the index.

    Args:
        address: the folder.
        rank: this process.
        trainer_state: the bytes of ``trainer.ckpt``; of the coordinator.
    """

    def __init__(self, address: str, rank: int, trainer_state: bytes) -> None:
        self.folder = FolderFiles(address)
        self.name = f"rank-{rank:05d}.safetensors"
        self.trainer_state = trainer_state

    def reset(self, checkpoint_id: Any = None) -> None:
        """See ``StorageWriter``."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See ``StorageWriter``."""
        self.folder.make()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See ``StorageWriter``."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """See ``StorageWriter``."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See ``StorageWriter``."""
        tensors = [planner.resolve_data(item) for item in plan.items]
        header: dict[str, Any] = {}
        places, end = [], 0
        for number, (item, tensor) in enumerate(zip(plan.items, tensors, strict=True)):
            assert isinstance(tensor, Tensor)
            size = tensor.numel() * tensor.element_size()
            offset = "" if item.index.offset is None else "@" + ",".join(map(str, item.index.offset))
            header[f"{number}:{item.index.fqn}{offset}"] = {
                "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size],
            }  # fmt: skip
            places.append((end, size))
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)

        def content() -> Iterator[bytes | memoryview]:
            yield len(text).to_bytes(8, "little") + text
            for tensor in tensors:
                assert isinstance(tensor, Tensor)
                yield tensor_bytes(tensor)

        written = self.folder.write(self.name, content) if places else None
        results = [
            WriteResult(
                index=item.index,
                size_in_bytes=size,
                storage_data={"file": self.name, "start": 8 + len(text) + start, "bytes": size, "whole_file": written},
            )
            for item, (start, size) in zip(plan.items, places, strict=True)
        ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See ``StorageWriter``: write what makes the checkpoint complete."""
        files = {TRAINER_FILE: self.folder.write(TRAINER_FILE, lambda: iter([self.trainer_state]))}
        tensors: dict[str, Any] = {}
        for result in (result for of_rank in results for result in of_rank):
            about = metadata.state_dict_metadata[result.index.fqn]
            assert isinstance(about, TensorStorageMetadata)
            offset = list(result.index.offset or [0] * len(about.size))
            chunk = next(chunk for chunk in about.chunks if list(chunk.offsets) == offset)
            place = dict(result.storage_data)
            files[place["file"]] = place.pop("whole_file")
            entry = tensors.setdefault(
                result.index.fqn,
                {"dtype": NAMES[about.properties.dtype], "shape": list(about.size), "parts": []},
            )
            entry["parts"].append({"offsets": offset, "sizes": list(chunk.sizes), **place})
        index = {"format": FORMAT, "files": files, "tensors": tensors}
        self.folder.write(INDEX, lambda: iter([json.dumps(index).encode()]))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """See ``StorageWriter``."""
        return True


class FolderReader(StorageReader):
    """Reads the parts of tensors that this process needs.

    Args:
        address: the folder.
        index: its index, as ``read_index`` returned it.
    """

    def __init__(self, address: str, index: Mapping[str, Any]) -> None:
        self.folder = FolderFiles(address)
        self.index = index

    def reset(self, checkpoint_id: Any = None) -> None:
        """See ``StorageReader``."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See ``StorageReader``."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=DTYPES[tensor["dtype"]]),
                    size=torch.Size(tensor["shape"]),
                    chunks=[
                        ChunkStorageMetadata(offsets=torch.Size(part["offsets"]), sizes=torch.Size(part["sizes"]))
                        for part in tensor["parts"]
                    ],
                )
                for name, tensor in self.index["tensors"].items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See ``StorageReader``."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """See ``StorageReader``."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See ``StorageReader``."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """See ``StorageReader``."""
        with ThreadPoolExecutor(READS) as pool:
            for first in range(0, len(plan.items), READS):
                items = plan.items[first : first + READS]
                for item, data in zip(items, pool.map(self._read, items), strict=True):
                    part, dtype = self._find(item.storage_index)
                    read = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                    read = read.reshape(part["sizes"])
                    for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        read = read.narrow(axis, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(read)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem) -> bytearray:
        part, _ = self._find(item.storage_index)
        return bytearray(self.folder.read(part["file"], part["start"], part["bytes"]))

    def _find(self, index: MetadataIndex) -> tuple[dict[str, Any], torch.dtype]:
        tensor = self.index["tensors"][index.fqn]
        offset = list(index.offset or [0] * len(tensor["shape"]))
        return next(part for part in tensor["parts"] if part["offsets"] == offset), DTYPES[tensor["dtype"]]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """See ``StorageReader``."""
        return True


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the values of a tensor as they lie in memory, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(values)
