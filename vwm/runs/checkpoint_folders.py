"""The checkpoint folders of a run: saved by all processes while they train on, verified before they are loaded."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from vwm.core.process_group import is_distributed, process_rank, rank_count
from vwm.core.remote_files import StoreError
from vwm.runs.checkpoint_files import INDEX, FolderFiles
from vwm.runs.checkpoint_folder import DTYPES, TRAINER_FILE, FolderReader, FolderWriter, read_index
from vwm.runs.checkpoints import CheckpointError
from vwm.runs.tensor_parts import PartLoadPlanner, PartSavePlanner, TensorPart

Result = TypeVar("Result")
TENSOR_PARTS = ("state_dict", "optimizer_states", "callbacks")
"""Parts of a checkpoint whose tensors are written by all processes."""
MARK = "vwm.tensor"
"""First entry of what stands in the place of a tensor."""
FOLDER_NAME = re.compile(r"step-(\d{8,})")
DescribePart = Callable[[str, Tensor], Tensor | TensorPart]
"""What gives, for the path of a tensor in a checkpoint and a sharded tensor for it, how it is part of the whole."""
FAILURES = 3
"""So many saves that fail one after the other end a training."""


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
        self._failures = 0

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in ascending order.

        Raises:
            FileNotFoundError: there is no such bucket.
            StoreError: the store cannot be reached.
        """
        place = FolderFiles(self.address)
        return [step for step in _step_folders(place) if place.has(f"{_folder_name(step)}/{INDEX}")]

    def folder(self, step: int) -> str:
        """Return the address of the folder of a step."""
        return f"{self.address}/{_folder_name(step)}"

    def save(self, step: int, state: Mapping[str, Any], describe: DescribePart = lambda path, tensor: tensor) -> None:
        """Begin to save a checkpoint, in all processes; tensors are copied before this returns, and written after it.

        The folder of a step that is already complete is left as it is. A save that is not done yet is waited for. One
        that failed is printed, and replaced by this one.

        Args:
            step: the number of the step.
            state: nested tensors and plain values; tensors may be sharded (``DTensor``).
            describe: see ``DescribePart``; by default a ``DTensor`` tells it.

        Raises:
            CheckpointError: three saves failed one after the other.
        """
        if self._saving is None:
            self._clean_up()  # after a process that was killed before it did
        try:
            self.wait()
        except CheckpointError as error:
            if self._failures >= FAILURES:
                raise
            if process_rank() == 0:
                print(f"warning: {error}. The training goes on, and saves step {step}", flush=True)
        if self._agree(process_rank() == 0 and self._is_complete(step)):
            return
        rest, tensors = take_out_tensors(state)
        buffer = io.BytesIO()
        if process_rank() == 0:
            torch.save(rest, buffer)
        _expect_one_process()
        writer = FolderWriter(self.folder(step), process_rank(), buffer.getvalue())
        future = async_save(
            {path: describe(path, tensor) for path, tensor in tensors.items()},
            storage_writer=writer,
            planner=PartSavePlanner(),
            process_group=self._cpu_group(),
            no_dist=not is_distributed(),
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
            self._failures += 1
            rank, (reason, _) = next(iter(error.failures.items()))
            raise CheckpointError(f"{self.folder(step)}: rank {rank} could not write it ({reason})") from error
        self._failures = 0
        self._clean_up()

    def _is_complete(self, step: int) -> bool:
        """Whether a step is saved; false where the store cannot be asked, which the save will say."""
        try:
            return FolderFiles(self.folder(step)).has(INDEX)
        except StoreError:
            return False

    def _clean_up(self) -> None:
        if process_rank() == 0:
            try:
                self.remove_old()
            except OSError as error:
                print(f"warning: {self.address}: old checkpoints could not be removed ({error})", flush=True)

    def remove_old(self) -> None:
        """Remove all but the last complete checkpoints, and what killed processes left incomplete before these."""
        steps = self.steps()
        kept = {step for step in steps if self.keep_every_n_steps and step % self.keep_every_n_steps == 0}
        kept |= set(steps[-self.keep :])
        for step in _step_folders(FolderFiles(self.address)):
            if steps and step <= steps[-1] and step not in kept:
                self._remove(step)

    def remove_later(self, step: int) -> list[int]:
        """Remove the checkpoints of later steps than this one, complete or not; return their steps."""
        later = [other for other in _step_folders(FolderFiles(self.address)) if other > step]
        for other in later:
            self._remove(other)
        return later

    def _remove(self, step: int) -> None:
        place = FolderFiles(self.address)
        place.remove(f"{_folder_name(step)}/{INDEX}")  # first, so that what is left is known to be incomplete
        place.remove(_folder_name(step))

    def load(
        self,
        like: Callable[[str], Tensor | None] = lambda path: None,
        describe: DescribePart = lambda path, tensor: tensor,
    ) -> dict[str, Any]:
        """Load the last checkpoint that is whole, in all processes; of damaged ones before, say which file is damaged.

        Args:
            like: for the path of a tensor, one that is sharded as it shall be (``DTensor``); None loads it as a whole,
                into the host's memory.
            describe: see ``DescribePart``.

        Raises:
            CheckpointError: there is none that is whole.
            StoreError: the store cannot be reached.
        """
        damaged: list[str] = []
        for step in reversed(self._agree(self.steps() if process_rank() == 0 else [])):
            reason = self._verify(step)
            if reason is None:
                if damaged and process_rank() == 0:
                    print(f"warning: {'; '.join(damaged)}. Continuing from {self.folder(step)}", flush=True)
                return self._load(step, like, describe)
            damaged.append(reason)
        raise CheckpointError("; ".join(damaged) or f"{self.address}: there is no complete checkpoint")

    def _load(self, step: int, like: Callable[[str], Tensor | None], describe: DescribePart) -> dict[str, Any]:
        folder = FolderFiles(self.folder(step))
        index = read_index(folder)
        try:
            rest = torch.load(io.BytesIO(folder.read(TRAINER_FILE)), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{folder.address}/{TRAINER_FILE}: is no checkpoint of vwm ({error})") from error
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Any] = {}
        for path, tensor in index["tensors"].items():
            sharded, shape = like(path), torch.Size(tensor["shape"])
            if sharded is not None:
                tensors[path] = torch.empty_like(sharded, dtype=DTYPES[tensor["dtype"]])
                parts[path] = describe(path, tensors[path])
            if sharded is None or parts[path].shape != shape:
                tensors[path] = parts[path] = torch.empty(shape, dtype=DTYPES[tensor["dtype"]])
        _expect_one_process()
        reader = FolderReader(folder.address, index)
        load(
            parts,
            storage_reader=reader,
            planner=PartLoadPlanner(),
            process_group=self._cpu_group(),
            no_dist=not is_distributed(),
        )
        loaded: dict[str, Any] = _put_tensors(rest, tensors)
        return loaded

    def _verify(self, step: int) -> str | None:
        """Compare all bytes with their checksums, each process a share of the files; return what is wrong."""
        wrong: CheckpointError | StoreError | None = None
        ranks = rank_count()
        folder = FolderFiles(self.folder(step))
        try:
            index = read_index(folder)
            for number, (name, expected) in enumerate(sorted(index["files"].items())):
                if number % ranks == process_rank():
                    folder.check(name, expected)
        except (CheckpointError, StoreError) as error:
            wrong = error
        everyone: list[Any] = [wrong]
        if ranks > 1:
            everyone = [None] * ranks
            dist.all_gather_object(everyone, wrong, group=self._cpu_group())
        found = [reason for reason in everyone if reason is not None]
        for reason in found:
            if isinstance(reason, StoreError):  # the checkpoint may be whole: an older one is not as good
                raise reason
        return str(found[0]) if found else None

    def _cpu_group(self) -> Any:
        """Return a group of all processes for messages between threads that write; None without processes."""
        if self._group is None and is_distributed():
            self._group = dist.new_group(backend="gloo")
        return self._group

    def _agree(self, value: Result) -> Result:
        """Return the first process's value."""
        answer = [value]
        if is_distributed():
            dist.broadcast_object_list(answer, src=0, group=self._cpu_group())
        return answer[0]


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _step_folders(place: FolderFiles) -> list[int]:
    """Return the steps of all checkpoints, those that are not complete included, in ascending order."""
    return sorted(int(found[1]) for name in place.names() if (found := FOLDER_NAME.fullmatch(name)))


def _expect_one_process() -> None:
    """Keep torch from warning, in the thread that writes, of what is meant."""
    if not is_distributed():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
