"""Give up on decoders that hang: run a call or an iterator in a thread and wait a limited time for each result."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def call_with_timeout(function: Callable[[], T], seconds: float, progress: threading.Event | None = None) -> T:
    """Return ``function()``, computed in a daemon thread. A thread that hangs is abandoned and ends with the process.

    Args:
        function: what to call.
        seconds: how long to wait.
        progress: an event that a long ``function`` sets whenever it has made a step; the wait begins again with it.

    Raises:
        TimeoutError: the call took longer than ``seconds`` without progress.
    """
    results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((function(), None))
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            value, error = results.get(timeout=seconds)
            break
        except queue.Empty:
            if progress is None or not progress.is_set():
                raise TimeoutError(f"no result within {seconds:g} s") from None
            progress.clear()
    if error is not None:
        raise error
    return value


def iterate_with_timeout(items: Iterator[T], seconds: float) -> Iterator[T]:
    """Yield ``items``, computed in a daemon thread. A thread that hangs is abandoned and ends with the process.

    Raises:
        TimeoutError: one item took longer than ``seconds``.
    """
    results: queue.Queue[tuple[Any, bool, Exception | None]] = queue.Queue(maxsize=16)

    def work() -> None:
        try:
            for item in items:
                results.put((item, False, None))
            results.put((None, True, None))
        except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
            results.put((None, True, error))

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            item, finished, error = results.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the decoder gave no frame for {seconds:g} s and was abandoned") from None
        if error is not None:
            raise error
        if finished:
            return
        yield item
