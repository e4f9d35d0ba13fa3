"""Read pickles of plain values and NumPy arrays without unpickling: nothing in them is imported or called."""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
    + ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NAMES = frozenset(
    ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar")
    + ("numpy.core.numeric._frombuffer",)
)


@dataclass(frozen=True)
class _Name:
    """A function or class of NumPy that a pickle names; it stands for itself, and is never called."""

    text: str


@dataclass
class _Dtype:
    """A type of numbers, such as ``i8``."""

    code: str
    order: str = "|"

    def make(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[biuf][1248]", self.code) or self.order not in "<>|=":
            raise ValueError(f"has an array of type {self.order}{self.code}, not of numbers")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """An array whose type, shape and bytes follow later in the pickle."""

    values: NDArray[Any] | None = None


def read_plain_pickle(content: bytes) -> dict[str, Any]:
    """Return a pickled dict of texts, numbers, bytes and NumPy arrays of numbers.

    The operations of the pickle are interpreted here, the few that such a dict requires (protocols 3 to 5), so that
    a hostile one can only fail.

    Raises:
        ValueError: it is damaged, or holds anything else; the message names it.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        with warnings.catch_warnings():  # of escapes in damaged texts
            warnings.simplefilter("ignore", DeprecationWarning)
            for operation, argument, _ in pickletools.genops(content):
                _apply(operation.name, argument, stack, marks, memo)
        (result,) = stack
    except (IndexError, KeyError, TypeError, AttributeError, AssertionError, UnicodeDecodeError) as error:
        raise ValueError(f"is a damaged pickle ({type(error).__name__}: {error})") from error
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise ValueError(f"is a pickle of {type(result).__name__}, not of a dict with names")
    return {key: value.values if isinstance(value, _Array) else value for key, value in result.items()}


def _apply(name: str, argument: Any, stack: list[Any], marks: list[int], memo: dict[int, Any]) -> None:
    """Apply one operation."""
    if name in _VALUES:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "MARK":
        marks.append(len(stack))
    elif name in _TUPLES or name == "TUPLE":
        start = marks.pop() if name == "TUPLE" else len(stack) - _TUPLES[name]
        stack[start:] = [tuple(stack[start:])]
    elif name in ("SETITEM", "SETITEMS"):
        start = marks.pop() if name == "SETITEMS" else len(stack) - 2
        items = stack[start:]
        del stack[start:]
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
        memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        module, attribute = argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop())
        stack.append(_find_name(f"{module}.{attribute}"))
    elif name in ("REDUCE", "BUILD"):
        given = stack.pop()
        stack[-1] = (_reduce if name == "REDUCE" else _build)(stack[-1], given)
    elif name not in ("PROTO", "FRAME", "STOP"):
        raise ValueError(f"is a pickle with {name}, which no dict of numbers and arrays has")


def _find_name(name: str) -> _Name:
    name = name.replace("numpy._core.", "numpy.core.")
    if name not in _NAMES:
        raise ValueError(f"is a pickle that names {name}: only values and arrays of numbers are read, no code is run")
    return _Name(name)


def _reduce(function: Any, arguments: Any) -> Any:
    """Return what NumPy's own function would give, as far as it is known yet."""
    text = function.text if isinstance(function, _Name) else type(function).__name__
    if text == "numpy.dtype":
        return _Dtype(str(arguments[0]).lstrip("<>|="))
    if text.endswith("._reconstruct"):
        return _Array()
    if text.endswith("._frombuffer"):
        content, kind, shape, order = arguments
        return _Array(_make_array(content, kind, shape, order))
    if text.endswith(".scalar"):
        kind, content = arguments
        return _make_array(content, kind, (1,), "C")[0].item()
    raise ValueError(f"is a pickle that calls {text}")


def _build(value: Any, state: Any) -> Any:
    """Complete a type or an array."""
    if isinstance(value, _Dtype):
        if any(part is not None for part in state[2:5]):
            raise ValueError("has an array of records, not of numbers")
        value.order = str(state[1])
    elif isinstance(value, _Array):
        _, shape, kind, is_fortran, content = state
        value.values = _make_array(content, kind, shape, "F" if is_fortran else "C")
    else:
        raise ValueError(f"is a pickle that sets the state of {type(value).__name__}")
    return value


def _make_array(content: Any, kind: Any, shape: Sequence[int], order: Any) -> NDArray[Any]:
    if not isinstance(content, bytes | bytearray) or not isinstance(kind, _Dtype):
        raise ValueError("has an array of objects, not of numbers")
    return np.frombuffer(content, kind.make()).reshape(tuple(shape), order="F" if order == "F" else "C")
