"""The named parts of a composite action: choices, keys that can be held together, axes, and a relative pointer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PART_KINDS = ("choice", "keys", "axes", "pointer")
MAX_PART_SIZE = 4096
"""Limit of what a bundle or a recording may ask for."""


@dataclass(frozen=True)
class ActionPart:
    """One part of a composite action: some columns of its row.

    Attributes:
        kind: ``"choice"`` (one column, a whole number in [0, size)), ``"keys"`` (``size`` columns, each 1 where the key
            is held and else 0), ``"axes"`` (``size`` columns in [-1, 1]) or ``"pointer"`` (two columns, the relative
            movement to the right and down, in [-1, 1]).
        size: number of choices, keys or axes; 2 for a pointer.
        name: of the part; by default its kind.
        names: of the choices, keys or axes; by default numbered.
        rest: of axes: the value of each without any input; empty where all rest at 0.

    Raises:
        ValueError: an unknown kind, a size out of range, or names or rest values that do not fit.
    """

    kind: str
    size: int = 2
    name: str = ""
    names: tuple[str, ...] = ()
    rest: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in PART_KINDS:
            raise ValueError(f"kind of an action part must be one of {', '.join(PART_KINDS)}, got {self.kind!r}")
        if type(self.size) is not int or not 1 <= self.size <= MAX_PART_SIZE:
            raise ValueError(
                f"size of action part {self.name or self.kind!r} must lie in 1..{MAX_PART_SIZE}, got {self.size!r}"
            )
        if self.kind == "pointer" and self.size != 2:
            raise ValueError(f"a pointer has 2 columns (right and down), got size {self.size}")
        object.__setattr__(self, "name", self.name or self.kind)
        names = tuple(self.names) or (("x", "y") if self.kind == "pointer" else tuple(map(str, range(self.size))))
        object.__setattr__(self, "names", names)
        if len(names) != self.size or len(set(names)) != len(names):
            raise ValueError(f"names of action part {self.name!r} must be {self.size} different texts, got {names}")
        rest = tuple(self.rest)
        if rest and (self.kind != "axes" or len(rest) != self.size or not all(abs(value) <= 1 for value in rest)):
            raise ValueError(f"rest of action part {self.name!r} must be one number in [-1, 1] per axis, got {rest}")
        object.__setattr__(self, "rest", rest if any(rest) else ())

    @classmethod
    def from_json(cls, saved: Any) -> ActionPart:
        """Read a part as ``to_json`` wrote it. Raises ValueError for other values, with the key."""
        if not isinstance(saved, Mapping) or not {"kind"} <= set(saved) <= set(cls.__dataclass_fields__):
            raise ValueError(
                f"an action part must be an object with kind, size, name, names and rest, got {str(saved)[:100]}"
            )
        texts, numbers = saved.get("names", ()), saved.get("rest", ())
        if not all(isinstance(saved.get(key, ""), str) for key in ("kind", "name")):
            raise ValueError(f"kind and name of an action part must be texts, got {str(saved)[:100]}")
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"names of an action part must be a list of texts, got {str(texts)[:100]}")
        if not isinstance(numbers, list | tuple) or not all(type(value) in (int, float) for value in numbers):
            raise ValueError(f"rest of an action part must be a list of numbers, got {str(numbers)[:100]}")
        return cls(**{**saved, "names": tuple(texts), "rest": tuple(map(float, numbers))})

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON."""
        saved = {"kind": self.kind, "size": self.size, "name": self.name, "names": list(self.names)}
        return {**saved, "rest": list(self.rest)} if self.rest else saved

    @property
    def columns(self) -> int:
        """Number of columns in the row of an action."""
        return 1 if self.kind == "choice" else self.size

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, such as ``keys.left``; that of a choice is the part's own."""
        return (self.name,) if self.kind == "choice" else tuple(f"{self.name}.{name}" for name in self.names)

    @property
    def low(self) -> int:
        """Lowest value of a column."""
        return 0 if self.is_whole else -1

    @property
    def high(self) -> int:
        """Highest value of a column."""
        return self.size - 1 if self.kind == "choice" else 1

    @property
    def is_whole(self) -> bool:
        """Whether the columns hold whole numbers."""
        return self.kind in ("choice", "keys")


def read_action_parts(saved: Any) -> tuple[ActionPart, ...]:
    """Read a list of parts, as metadata of recordings, configs and bundles state it.

    Raises:
        ValueError: it is no list of parts, or two have the same name.
    """
    if not isinstance(saved, list | tuple) or not saved:
        raise ValueError(f"action_parts must be a list of action parts, got {str(saved)[:100]}")
    parts = tuple(part if isinstance(part, ActionPart) else ActionPart.from_json(part) for part in saved)
    check_part_names(parts)
    return parts


def check_part_names(parts: Iterable[ActionPart]) -> None:
    """Raise ValueError where two parts have the same name."""
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        raise ValueError(f"action parts must have different names, got {', '.join(names)}")
