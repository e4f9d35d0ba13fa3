"""The checkpoint folders of a run: saved by all processes while they train on, verified before they are loaded."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from vwm.core.process_group import is_distributed, process_rank, rank_count
from vwm.runs.checkpoint_folder import DTYPES, INDEX, TRAINER_FILE, FolderFiles, FolderReader, FolderWriter
from vwm.runs.checkpoints import CheckpointError

TENSOR_PARTS = ("state_dict", "optimizer_states", "callbacks")
"""Parts of a checkpoint whose tensors are written by all processes."""
MARK = "vwm.tensor"
"""First entry of what stands in the place of a tensor."""
FOLDER_NAME = re.compile(r"step-(\d{8,})")


def take_out_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Separate the tensors of a checkpoint from the rest.

    Returns:
        The checkpoint with ``(MARK, path)`` in the place of tensors, and the tensors by path.
    """
    tensors: dict[str, Tensor] = {}
    rest = {key: _take_tensors(value, key, tensors) if key in TENSOR_PARTS else value for key, value in state.items()}
    return rest, tensors


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return (MARK, path)
    if isinstance(value, Mapping):
        return {key: _take_tensors(below, f"{path}/{key}", tensors) for key, below in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)([_take_tensors(below, f"{path}/{number}", tensors) for number, below in enumerate(value)])
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and value[0] == MARK:
        return tensors[value[1]]
    if isinstance(value, Mapping):
        return {key: _put_tensors(below, tensors) for key, below in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)([_put_tensors(below, tensors) for below in value])
    return value


class CheckpointFolders:
    """The folders ``step-N`` at one place.

    Args:
        address: a local folder or an address of fsspec.
        keep: how many of the last complete ones stay.
        keep_every_n_steps: those of multiples of this step stay, too; 0 keeps none of them.
    """

    def __init__(self, address: str, keep: int = 2, keep_every_n_steps: int = 0) -> None:
        self.address = address.rstrip("/")
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self._saving: tuple[int, Future[Any]] | None = None
        self._group: Any = None

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in ascending order."""
        place = FolderFiles(self.address)
        if not place.files.exists(place.path):
            return []
        place.files.invalidate_cache()
        names = (entry.rstrip("/").rpartition("/")[2] for entry in place.files.ls(place.path, detail=False))
        steps = sorted(int(found[1]) for name in names if (found := FOLDER_NAME.fullmatch(name)))
        return [step for step in steps if place.files.exists(place.place(f"step-{step:08d}/{INDEX}"))]

    def folder(self, step: int) -> str:
        """Return the address of the folder of a step."""
        return f"{self.address}/step-{step:08d}"

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to save a checkpoint, in all processes; tensors are copied before this returns, and written after it.

        The folder of a step that is already complete is left as it is. A save that is not done yet is waited for.

        Args:
            step: the number of the step.
            state: nested tensors and plain values; tensors may be sharded (``DTensor``).
        """
        self.wait()
        if process_rank() == 0:
            self.remove_old()
        if self._agree(step in self.steps()):
            return
        rest, tensors = take_out_tensors(state)
        buffer = io.BytesIO()
        if process_rank() == 0:
            torch.save(rest, buffer)
        _expect_one_process()
        writer = FolderWriter(self.folder(step), process_rank(), buffer.getvalue())
        future = async_save(
            dict(tensors), storage_writer=writer, process_group=self._cpu_group(), no_dist=not is_distributed()
        )
        assert isinstance(future, Future)
        self._saving = (step, future)

    def wait(self) -> None:
        """Wait until the checkpoint that is being saved is complete, and remove old ones.

        Raises:
            CheckpointError: it could not be written, in some process.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except CheckpointException as error:  # no Exception, but a BaseException
            rank, (reason, _) = next(iter(error.failures.items()))
            raise CheckpointError(f"{self.folder(step)}: rank {rank} could not write it ({reason})") from error
        if process_rank() == 0:
            self.remove_old()

    def remove_old(self) -> None:
        """Remove all but the last complete checkpoints, and what killed processes left incomplete before these."""
        place, steps = FolderFiles(self.address), self.steps()
        if not steps:
            return
        kept = {step for step in steps if self.keep_every_n_steps and step % self.keep_every_n_steps == 0}
        kept |= set(steps[-self.keep :])
        for entry in place.files.ls(place.path, detail=False):
            found = FOLDER_NAME.fullmatch(entry.rstrip("/").rpartition("/")[2])
            if found is None or int(found[1]) in kept or int(found[1]) > steps[-1]:
                continue
            index = f"{entry.rstrip('/')}/{INDEX}"
            if place.files.exists(index):
                place.files.rm(index)  # first, so that what is left is known to be incomplete
            place.files.rm(entry, recursive=True)

    def load(self, like: Callable[[str], Tensor | None] = lambda path: None) -> dict[str, Any]:
        """Load the last checkpoint that is whole, in all processes; of damaged ones before, say which file is damaged.

        Args:
            like: for the path of a tensor, one that is sharded as it shall be (``DTensor``); None loads it as a whole,
                into the host's memory.

        Raises:
            CheckpointError: there is none that is whole.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            reason = self._verify(step)
            if reason is None:
                if damaged and process_rank() == 0:
                    print(f"warning: {'; '.join(damaged)}. Continuing from {self.folder(step)}", flush=True)
                return self._load(step, like)
            damaged.append(reason)
        raise CheckpointError("; ".join(damaged) or f"{self.address}: there is no complete checkpoint")

    def _load(self, step: int, like: Callable[[str], Tensor | None]) -> dict[str, Any]:
        folder = FolderFiles(self.folder(step))
        index = folder.read_index()
        try:
            rest = torch.load(io.BytesIO(folder.read(TRAINER_FILE)), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{folder.address}/{TRAINER_FILE}: is no checkpoint of vwm ({error})") from error
        tensors: dict[str, Any] = {}
        for path, tensor in index["tensors"].items():
            sharded, shape = like(path), torch.Size(tensor["shape"])
            if sharded is not None and sharded.shape == shape:
                tensors[path] = torch.empty_like(sharded, dtype=DTYPES[tensor["dtype"]])
            else:
                tensors[path] = torch.empty(shape, dtype=DTYPES[tensor["dtype"]])
        _expect_one_process()
        reader = FolderReader(folder.address, index)
        load(tensors, storage_reader=reader, process_group=self._cpu_group(), no_dist=not is_distributed())
        loaded: dict[str, Any] = _put_tensors(rest, tensors)
        return loaded

    def _verify(self, step: int) -> str | None:
        """Compare all bytes with their checksums, each process a share of the files; return what is wrong."""
        wrong: str | None = None
        ranks = rank_count()
        folder = FolderFiles(self.folder(step))
        try:
            index = folder.read_index()
            for number, (name, expected) in enumerate(sorted(index["files"].items())):
                if number % ranks == process_rank():
                    folder.check(name, expected)
        except CheckpointError as error:
            wrong = str(error)
        everyone: list[str | None] = [wrong]
        if ranks > 1:
            everyone = [None] * ranks
            dist.all_gather_object(everyone, wrong, group=self._cpu_group())
        return next((reason for reason in everyone if reason), None)

    def _cpu_group(self) -> Any:
        """Return a group of all processes for messages between threads that write; None without processes."""
        if self._group is None and is_distributed():
            self._group = dist.new_group(backend="gloo")
        return self._group

    def _agree(self, value: bool) -> bool:
        """Return the first process's answer."""
        answer = [value]
        if is_distributed():
            dist.broadcast_object_list(answer, src=0, group=self._cpu_group())
        return bool(answer[0])


def _expect_one_process() -> None:
    """Keep torch from warning, in the thread that writes, of what is meant."""
    if not is_distributed():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
