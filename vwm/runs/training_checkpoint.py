"""Checkpoints of trainings: networks, optimizers, counters, and torch's own generators, of which agents draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_FILE, BEST_WEIGHTS_FILE = "state.pt", "best.pt"


def checkpoint_path(run: Path) -> Path:
    """The file of a run's checkpoint, whether there is one yet or not."""
    return run / "checkpoint" / CHECKPOINT_FILE


def find_checkpoint(run: Path) -> Path:
    """The file of a run's checkpoint. Raises FileNotFoundError where nothing was saved yet."""
    path = checkpoint_path(run)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is none yet; the run saves every checkpoint_every")
    return path


def best_weights_path(run: Path) -> Path:
    """The file of the weights that did best in an evaluation, whether there is one yet or not."""
    return checkpoint_path(run).with_name(BEST_WEIGHTS_FILE)


def save_best_weights(run: Path, network: nn.Module) -> None:
    """Keep the weights as they are now; the run's checkpoint, from which it goes on, stays as it is."""
    save_checkpoint(best_weights_path(run), {"network": network}, {}, {})


def load_best_weights(run: Path, network: nn.Module) -> None:
    """Give a network the weights that did best.

    Raises:
        FileNotFoundError: the run was not evaluated yet, or was trained before such weights were kept.
        ValueError: they are another network's.
    """
    path = best_weights_path(run)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is none; a run keeps it from its first evaluation on (evaluate_every)")
    load_checkpoint(path, {"network": network}, {}, "agent or game")


def save_checkpoint(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    counters: Mapping[str, Any],
    **more: Any,
) -> None:
    """Write a checkpoint, aside and then renamed.

    Args:
        path: the file, in a folder that need not be there.
        networks, optimizers: by names.
        counters: how far the training is.
        **more: tensors and plain values of the training's own.
    """
    state = {
        **{name: network.state_dict() for name, network in networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "counters": dict(counters),
        **rng_states(),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    torch.save(state, aside)
    aside.replace(path)


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], what: str
) -> dict[str, Any]:
    """Restore networks and optimizers; the caller restores the rest and calls ``restore_rng_states`` last.

    Args:
        path: as ``save_checkpoint`` wrote it.
        networks, optimizers: as they were given to it.
        what: the networks are, for people.

    Returns:
        Everything that was saved.

    Raises:
        ValueError: other networks' weights.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    try:
        for name, network in networks.items():
            network.load_state_dict(state[name])
    except RuntimeError as error:
        raise ValueError(f"{path}: is of another {what} than this config's ({error})") from error
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return state


def rng_states() -> dict[str, Any]:
    """Where the CPU's generator and every GPU's stand, as entries of a checkpoint."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random": torch.get_rng_state(), "random_cuda": cuda}


def restore_rng_states(checkpoint: Mapping[str, Any]) -> None:
    """Go on drawing where ``rng_states`` stood; of GPUs, with those that this machine has, too."""
    torch.set_rng_state(checkpoint["random"])
    for device, state in zip(range(torch.cuda.device_count()), checkpoint["random_cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
