"""Checkpoints of trainings: written atomically, loaded without unpickling code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vwm.core.atomic_files import atomic_write
from vwm.runs.rng_states import rng_states
from vwm.runs.run_folder import RunFolder


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load what ``write_checkpoint`` saved, onto the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: is of another {what} than this config's ({error})") from error


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
