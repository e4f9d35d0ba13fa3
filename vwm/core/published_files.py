"""Read the weights that other projects publish, without running code from the files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vwm.core.weight_mapping import PretrainedWeightsError, StateDict

PUBLISHED_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin")
"""Endings of files that ``read_published_weights`` reads."""


def read_published_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``.safetensors`` file or a checkpoint of torch; nothing is unpickled except tensors and plain values.

    Returns:
        What the file holds, on the CPU: weights by name, or a checkpoint with such dictionaries in it.

    Raises:
        PretrainedWeightsError: there is no such file, or it is broken or no checkpoint.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds of errors for a broken file
        raise PretrainedWeightsError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(checkpoint, dict):
        raise PretrainedWeightsError(f"{path}: holds a {type(checkpoint).__name__} and no checkpoint")
    return checkpoint


def as_state_dict(weights: object, where: str, wrappers: str = "module|backbone") -> StateDict:
    """Return weights by their names, without the prefixes of modules that wrapped the network in training.

    Args:
        weights: a part of a checkpoint.
        where: file and part, for error messages.
        wrappers: the names of such modules, as alternatives of a regular expression.

    Raises:
        PretrainedWeightsError: it holds something else than tensors.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise PretrainedWeightsError(f"{where}: the checkpoint has no weights of this name")
    return {re.sub(rf"^(({wrappers})\.)+", "", key): weight for key, weight in weights.items()}


def find_published_file(source: Path, names: tuple[str, ...]) -> Path:
    """Return the file of a published checkpoint.

    Args:
        source: a folder that holds it.
        names: its possible names, of which exactly one must be there.

    Raises:
        PretrainedWeightsError: there is none of them, or there are several.
    """
    found = [source / name for name in names if (source / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise PretrainedWeightsError(
            f"{source}: holds {' and '.join(file.name for file in found)}: leave one of them there"
        )
    raise PretrainedWeightsError(f"{source}: there is no {' or '.join(names)}: download it into this folder")
