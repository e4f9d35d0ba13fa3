"""Handle Ctrl-C and a scheduler's signals: the training saves and ends at its next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Whether the process was asked to stop; true from the first signal on. Use it as a context.

    A second signal has its default effect. Outside the main thread, which alone receives signals, the request stays
    false.

    Attributes:
        number: number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handlers_before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers_before = {number: signal.signal(number, self._request) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()

    def end(self, message: str) -> None:
        """If a stop was requested, print the message and exit with the signal's exit code. Raises SystemExit."""
        if self.number:
            print(f"\nstopped: {message}; the same command continues from there")
            raise SystemExit(128 + self.number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        self._handlers_before = {}
