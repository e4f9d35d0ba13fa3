"""Checkpoints of trainings: written whole, loaded without unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vwm.core.atomic_files import atomic_write
from vwm.runs.rng_states import rng_states
from vwm.runs.run_folder import RunFolder


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
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Mapping[str, Any],
    **more: Any,
) -> None:
    """Save a training: networks, optimizers, counters and the states of the random generators.

    Args:
        path: the file.
        networks, optimizers: by names.
        counters: how far the training is.
        **more: tensors and plain values of the training's own.
    """
    state = {
        **{name: network.state_dict() for name, network in networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "counters": dict(counters),
        "generators": rng_states(),
        **more,
    }
    write_checkpoint(path, state)


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], what: str
) -> dict[str, Any]:
    """Restore networks and optimizers; the caller restores the rest, and the random generators last.

    Args:
        path: as ``save_checkpoint`` wrote it.
        networks, optimizers: as they were given to it.
        what: the networks are, for people.

    Returns:
        Everything that was saved; its ``generators`` are for ``restore_rng_states``.

    Raises:
        ValueError: other networks' weights.
    """
    state = read_checkpoint(path)
    try:
        for name, network in networks.items():
            network.load_state_dict(state[name])
    except RuntimeError as error:
        raise ValueError(f"{path}: is of another {what} than this config's ({error})") from error
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state


def save_best_weights(run: RunFolder, network: nn.Module) -> None:
    """Keep the weights as they are now; the checkpoint from which the run resumes stays as it is."""
    save_checkpoint(run.best_checkpoint, {"network": network}, {}, {})


def load_best_weights(run: RunFolder, network: nn.Module) -> None:
    """Give a network the weights with the best evaluation.

    Raises:
        FileNotFoundError: the run was not evaluated yet.
        ValueError: they are another network's.
    """
    if not run.best_checkpoint.is_file():
        raise FileNotFoundError(
            f"{run.best_checkpoint} does not exist: a run writes it at its first evaluation (evaluate_every)"
        )
    load_checkpoint(run.best_checkpoint, {"network": network}, {}, "agent or environment")
