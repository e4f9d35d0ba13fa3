"""Checkpoints of trainings: written atomically, loaded without unpickling code."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vwm.core.atomic_files import atomic_write
from vwm.runs.rng_states import rng_states
from vwm.runs.run_folder import RunFolder

MISMATCH = "in loading state_dict for"
"""Part of torch's message where weights have other names or shapes."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and the remedy."""


class Stateful(Protocol):
    """What can be saved and restored: networks, and algorithms."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore what ``state_dict`` returned. Raises RuntimeError or KeyError for another network's state."""
        ...


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save nested tensors and plain values; the file that was there stays until the new one is complete.

    Args:
        path: the file; its folder is made where it is missing.
        state: what to save.
    """
    with atomic_write(path) as file:
        torch.save(dict(state), file)
        file.flush()
        check_checkpoint_file(Path(file.name))  # read back before it replaces the old one


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load what ``write_checkpoint`` saved, onto the CPU; every byte is compared with its checksum.

    Raises:
        CheckpointError: the file is cut off, damaged or no checkpoint; the message names an older one, where there is.
    """
    check_checkpoint_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of vwm ({_first_line(error)})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no checkpoint of vwm (it holds a {type(state).__name__})")
    return state


def check_checkpoint_file(path: Path) -> None:
    """Compare all bytes of a checkpoint with their checksums.

    Raises:
        CheckpointError: the file is cut off or damaged; the message names an older one, where there is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise CheckpointError(
            f"{path}: is cut off or damaged ({_first_line(error)}){_older_checkpoint(path)}"
        ) from error
    if broken is not None:
        raise CheckpointError(f"{path}: is damaged ({broken} has another checksum){_older_checkpoint(path)}")


def _older_checkpoint(path: Path) -> str:
    """Name the latest other checkpoint of the folder, as a remedy."""
    others = sorted(other for other in path.parent.glob("step-*.ckpt") if other != path)
    if not others:
        return ": start the run again in a new folder, or with --no-resume"
    return f": copy {others[-1].name}, which is in the same folder, over it to continue from there"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def save_checkpoint(
    path: Path,
    parts: Mapping[str, Stateful],
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Mapping[str, Any],
    **more: Any,
) -> None:
    """Save a training: networks or algorithms, optimizers, counters and the states of the random generators.

    Args:
        path: the file.
        parts, optimizers: what to save, by name.
        counters: progress of the training.
        **more: further tensors and plain values.
    """
    state = {
        **{name: part.state_dict() for name, part in parts.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "counters": dict(counters),
        "generators": rng_states(),
        **more,
    }
    write_checkpoint(path, state)


def load_checkpoint(
    path: Path, parts: Mapping[str, Stateful], optimizers: Mapping[str, torch.optim.Optimizer], what: str
) -> dict[str, Any]:
    """Restore networks or algorithms, and optimizers; the caller restores the rest, and the random generators last.

    Args:
        path: as ``save_checkpoint`` wrote it.
        parts, optimizers: as they were given to it.
        what: the kind of the parts, for the error message.

    Returns:
        Everything that was saved; its ``generators`` are for ``restore_rng_states``.

    Raises:
        ValueError: the state is of other networks.
    """
    state = read_checkpoint(path)
    with mismatch_as_value_error(path, what):
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state


@contextmanager
def mismatch_as_value_error(path: Path, what: str) -> Iterator[None]:
    """Turn the errors of states that do not fit into a ValueError that names the file."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: is of another {what} than this config's (it has no {error})") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: is of another {what} than this config's ({_summarize(error)})") from error


@contextmanager
def weight_mismatch_as_value_error(path: str | None, what: str) -> Iterator[None]:
    """Do the same for a block that does more than loading: only what torch raises for other weights is turned."""
    try:
        yield
    except RuntimeError as error:
        if path is None or MISMATCH not in str(error):
            raise
        raise ValueError(f"{path}: is of another {what} than this config's ({_summarize(error)})") from error


def _summarize(error: RuntimeError) -> str:
    """Return the first of the differences that torch lists, which may be hundreds, and their number."""
    if MISMATCH not in str(error):
        return _first_line(error)
    _, *lines = (line.strip() for line in str(error).splitlines())
    keys = [key for line in lines if "key(s)" in line for key in line.partition(": ")[2].split(", ")]
    number = len(keys) + sum("key(s)" not in line for line in lines)
    first = re.split(r"(?<=\"), ", lines[0])[0].rstrip(".") if lines else str(error)
    return first if number <= 1 else f"{number} differences, the first: {first}"


def save_best_weights(run: RunFolder, network: nn.Module) -> None:
    """Keep the weights as they are now; the checkpoint from which the run resumes stays as it is."""
    save_checkpoint(run.best_checkpoint, {"network": network}, {}, {})


def load_best_weights(run: RunFolder, network: nn.Module) -> None:
    """Give a network the weights with the best evaluation.

    Raises:
        FileNotFoundError: the run was not evaluated yet.
        ValueError: they belong to another network.
    """
    if not run.best_checkpoint.is_file():
        raise FileNotFoundError(
            f"{run.best_checkpoint} does not exist: a run writes it at its first evaluation (evaluation.every)"
        )
    load_checkpoint(run.best_checkpoint, {"network": network}, {}, "agent or environment")
