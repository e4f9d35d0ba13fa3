"""Hashes of nested values, and the table that they are collected in."""

from __future__ import annotations

import hashlib
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
FOUND: dict[str, Any] = {}


FORMER_FIELDS = {"labeled": "labelled"}
"""Names that fields of dataclasses had in the recorded baseline."""
LATER_FIELDS = ("known_parts",)
"""Fields that the recorded baseline did not have; skipped where they are None."""


def feed(digest: Any, value: Any) -> None:
    """Whatever an object holds, with types and shapes, without the names of classes."""
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"T{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        feed(digest, torch.from_numpy(np.array(value)))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(f"K{key}".encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"L{len(value)}".encode())
        for item in value:
            feed(digest, item)
    elif is_dataclass(value) and not isinstance(value, type):
        content = {FORMER_FIELDS.get(f.name, f.name): getattr(value, f.name) for f in fields(value)}
        feed(digest, {k: v for k, v in content.items() if k not in LATER_FIELDS or v is not None})
    elif isinstance(value, bytes):
        digest.update(b"B" + value)
    elif value is None or isinstance(value, str | bool | int | float):
        digest.update(repr(value).encode())
    else:
        raise TypeError(f"no hash of {type(value)}")


def hashed(value: Any) -> str:
    digest = hashlib.sha256()
    feed(digest, value)
    return digest.hexdigest()


def put(name: str, value: Any) -> None:
    if name in FOUND:
        raise KeyError(f"{name} twice")
    entry: dict[str, Any] = {"sha256": hashed(value)}
    if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
        entry["value"] = float(value)
    FOUND[name] = entry


def put_weights(name: str, module: nn.Module) -> None:
    state = module.state_dict()
    put(f"{name}/weights", sorted(hashed(value) for value in state.values()))
    put(f"{name}/weights_by_name", list(state.items()))


def case(name: str, function: Callable[..., None], *arguments: Any, **settings: Any) -> None:
    began = time.perf_counter()
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(name, *arguments, **settings)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        put(f"{name}/ERROR", f"{type(error).__name__}")
    print(f"{time.perf_counter() - began:7.2f} s  {name}", file=sys.stderr, flush=True)
