"""Statistics of composite actions, part by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vwm.core.action_parts import ActionPart

MAX_NAMES = 16
"""Of more choices or keys in a part, the most frequent ones are listed."""


class CompositeActionStatistics:
    """The composite actions of a data set, by the parts that its episodes state."""

    def __init__(self) -> None:
        self._columns: dict[ActionPart, list[NDArray[np.float32]]] = {}
        self._unknown: defaultdict[ActionPart, int] = defaultdict(int)

    def add(self, parts: tuple[ActionPart, ...], known: tuple[bool, ...], actions: NDArray[np.float32]) -> None:
        """Add the actions of an episode, float32 [T, A], of whose parts some are unknown."""
        start = 0
        for part, is_known in zip(parts, known, strict=True):
            columns = self._columns.setdefault(part, [])
            if is_known:
                columns.append(actions[:, start : start + part.columns])
            else:
                self._unknown[part] += 1
            start += part.columns

    def format(self) -> Iterator[str]:
        """Yield the lines to print: one per part of whole numbers, and one per axis or side of a pointer."""
        for part, columns in self._columns.items():
            note = f" (unknown in {self._unknown[part]} episodes)" if self._unknown[part] else ""
            if not columns:
                yield f"  {part.name} ({part.kind} of {part.size}): unknown in all episodes"
                continue
            values = np.concatenate(columns)
            if part.is_whole:
                yield f"  {part.name} ({part.kind} of {part.size}): {_format_shares(part, values)}{note}"
            else:
                for name, column in zip(part.column_names, values.T, strict=True):
                    yield (
                        f"  {name} ({part.kind}): mean {column.mean():.3f}, std {column.std():.3f}, "
                        f"from {column.min():.3f} to {column.max():.3f}{note}"
                    )


def _format_shares(part: ActionPart, values: NDArray[np.float32]) -> str:
    """Format how often each choice is taken, or each key held, and how many keys together."""
    if part.kind == "choice":
        shares = np.bincount(values[:, 0].astype(np.int64), minlength=part.size) / len(values)
    else:
        shares = values.mean(axis=0)
    listed = np.sort(np.argsort(-shares, kind="stable")[:MAX_NAMES])
    text = ", ".join(f"{part.names[i]} {100 * shares[i]:.1f}%" for i in listed)
    if part.size > MAX_NAMES:
        text += f", {part.size - MAX_NAMES} more"
    if part.kind == "keys":
        held = values.sum(axis=1)
        text += f"; none {100 * (held == 0).mean():.1f}%, at most {int(held.max())} together"
    return text
