"""What a run of ``vwm fit`` resumes from and is exported from: a file, or checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from vwm.nn.tensor_parallel import WeightSplit, weight_split
from vwm.nn.training_module import TrainingModule
from vwm.runs.checkpoint_folders import FOLDER_NAME, CheckpointFolders, DescribePart
from vwm.runs.checkpoints import CheckpointError, read_checkpoint
from vwm.runs.run_folder import RunFolder
from vwm.runs.tensor_parts import Piece, TensorPart
from vwm.train.ema import EMACallback

NEEDED = {"state_dict", "global_step", "optimizer_states", "loops"}


def find_resume_point(run: RunFolder, url: str | None = None) -> str | None:
    """Return the last checkpoint of a run: the file or the folder with the later step; None where there is none.

    Args:
        run: its folder.
        url: where its checkpoint folders are, if not there.
    """
    folders = CheckpointFolders(url or str(run.checkpoints))
    steps = folders.steps()
    if not run.last_checkpoint.is_file():
        return folders.folder(steps[-1]) if steps else None
    if steps and int(read_checkpoint(run.last_checkpoint)["global_step"]) < steps[-1]:
        return folders.folder(steps[-1])
    return str(run.last_checkpoint)


def remove_later_points(run: RunFolder, url: str | None, step: int, replaces_file: bool) -> None:
    """Remove what a run would resume from and a training did not start from, before the training's first save.

    It started at an earlier step: later checkpoints are damaged, or the run was started again (``--no-resume``).

    Args:
        run: its folder.
        url: where its checkpoint folders are, if not there.
        step: where the training started.
        replaces_file: whether the save replaces the checkpoint file.
    """
    removed = CheckpointFolders(url or str(run.checkpoints)).remove_later(step)
    if run.last_checkpoint.is_file() and not replaces_file:
        try:
            last = int(read_checkpoint(run.last_checkpoint)["global_step"])
        except CheckpointError:
            last = step + 1
        if last > step:
            run.last_checkpoint.unlink()
            removed.append(last)
    if removed:
        print(f"note: the training started at step {step}: removed checkpoints of steps {sorted(removed)}", flush=True)


def load_resume_point(
    point: str,
    like: Callable[[str], Tensor | None] = lambda path: None,
    describe: DescribePart = lambda path, tensor: tensor,
) -> dict[str, Any]:
    """Load what ``find_resume_point`` found, in all processes; a damaged folder is replaced by the one before it.

    Args:
        point: a file or a folder.
        like, describe: see ``CheckpointFolders.load``.

    Raises:
        CheckpointError: it is damaged, or of another program.
    """
    place, _, name = point.rpartition("/")
    is_folder = FOLDER_NAME.fullmatch(name)
    checkpoint = CheckpointFolders(place).load(like, describe) if is_folder else read_checkpoint(Path(point))
    missing = NEEDED - checkpoint.keys()
    if missing:
        raise CheckpointError(f"{point}: is no checkpoint of vwm fit (it has no {', '.join(sorted(missing))})")
    return checkpoint


def find_shards(trainer: L.Trainer) -> Callable[[str], Tensor | None]:
    """Return what gives, for the path of a tensor in a checkpoint, the weight that is sharded as it shall be.

    Args:
        trainer: of the training that continues, with its module and optimizers.
    """
    module = trainer.lightning_module
    assert isinstance(module, TrainingModule)
    parameters = dict(module.named_parameters())
    optimized = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in trainer.optimizers]
    averaged = [p for network in module.networks().values() for p in network.parameters()]

    def find(path: str) -> Tensor | None:
        part, _, rest = path.partition("/")
        found: Any = None
        if part == "state_dict":
            found = parameters.get(rest)
        elif part == "optimizer_states":
            number, _, index, *_ = rest.split("/")
            weights = optimized[int(number)] if int(number) < len(optimized) else []
            found = weights[int(index)] if index.isdigit() and int(index) < len(weights) else None
        elif rest.startswith("EMACallback/average/shadow_params/"):
            found = dict(enumerate(averaged)).get(int(rest.rpartition("/")[2]))
        return found if isinstance(found, DTensor) else None

    return find


def describe_parts(find: Callable[[str], Tensor | None]) -> DescribePart:
    """Return what describes tensors that are divided over a tensor-parallel group, as weights say (``find_shards``)."""

    def describe(path: str, tensor: Tensor) -> Tensor | TensorPart:
        weight = find(path)
        split = weight_split(weight)
        if weight is None or split is None or tensor.shape != weight.shape:
            return tensor
        return _describe_part(tensor, split)

    return describe


def _describe_part(tensor: Any, split: WeightSplit) -> TensorPart:
    """Describe this process's rows, of those of its group, of a tensor that is divided over the group."""
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    pieces = []
    for start, whole, length in split.pieces():
        first = list(offsets)
        size = list(sizes)
        if split.dim == 0:
            first[0] = max(start, offsets[0])
            size[0] = max(0, min(start + length, offsets[0] + sizes[0]) - first[0])
        else:
            assert split.dim is not None
            first[split.dim], size[split.dim] = start, length
        begin = [place - offset for place, offset in zip(first, offsets, strict=True)]
        first[split.dim] += whole - start
        pieces.append(Piece(tuple(begin), tuple(first), tuple(size)))
    return TensorPart(tensor.to_local(), split.whole_shape(tensor.shape), pieces)


@contextmanager
def sharded_states(trainer: L.Trainer) -> Iterator[None]:
    """Leave states sharded inside the with-statement, where checkpoints gather them otherwise."""
    parts: list[Any] = [callback for callback in trainer.callbacks if isinstance(callback, EMACallback)]
    parts += [trainer.strategy] if hasattr(trainer.strategy, "gathers_state") else []
    for part in parts:
        part.gathers_state = False
    try:
        yield
    finally:
        for part in parts:
            part.gathers_state = True
