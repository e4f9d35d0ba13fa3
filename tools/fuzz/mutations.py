"""Mutations of bytes and of nested values, drawn from a generator."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e308, float("inf"), float("nan"), "", "x",
    "../../etc/passwd", "os.system", "a" * 5000, "\x00", "\ud800", [], [[]], {},
    {"class_path": "os.system"}, [None] * 50,
)  # fmt: skip


def mutate_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or overwrite, one to four times."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = len(changed)
        if not size:
            return bytes(changed)
        kind = rng.integers(6)
        start = int(rng.integers(size))
        stop = min(size, start + int(rng.integers(1, 64)))
        if kind == 0:
            changed[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            changed[start:start] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 3:
            changed[start:stop] = changed[start:stop] * 3
        elif kind == 4:
            changed[start:stop] = rng.choice([0, 255]).tobytes()[:1] * (stop - start)
        else:
            del changed[start:stop]
    return bytes(changed)


def mutate_value(rng: np.random.Generator, value: Any) -> Any:
    """Replace, remove, rename or repeat a part of nested mappings and lists, one to three times."""
    changed = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        changed = _mutate_once(rng, changed)
    return changed


def _mutate_once(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[int(rng.integers(len(value)))]
        kind = rng.integers(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[f"{key}x"] = value.pop(key)
        else:
            value[key] = _mutate_once(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = int(rng.integers(len(value)))
        kind = rng.integers(4)
        if kind == 0:
            del value[index]
        elif kind == 1:
            value.insert(index, copy.deepcopy(value[index]))
        else:
            value[index] = _mutate_once(rng, value[index])
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return value * int(rng.choice([-1, 2, 10, 1000, 10**9])) + int(rng.integers(-2, 3))
    return copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
