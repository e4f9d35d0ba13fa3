"""Ctrl-C and a scheduler's signals: a training ends at its next step, saved, rather than where it stands."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Whether somebody has asked to stop, as a context; true once somebody has.

    A second signal does what it always did. Outside the main thread, to which alone signals come, nobody ever asks.

    Attributes:
        number: of the signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def end(self, said: str) -> None:
        """Where it was asked for, say so and end the process as the signal would have. Raises SystemExit."""
        if self.number is not None:
            print(f"\nstopped: {said}; the same command goes on from there")
            raise SystemExit(128 + self.number)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
