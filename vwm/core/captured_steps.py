"""Accelerated stepping: a step is recorded once as a graph of kernels, and launched as a whole from then on.

A small network on a GPU waits for the launches of its kernels, not for their arithmetic. A graph launches all of them
at once, but reads and writes fixed memory, whereas the states of a simulator are values that callers keep, branch and
drop. Between the two stands ``CapturedSteps``:

- The state that a caller gives is copied into the graph's memory, and the new one out of it, so that a graph is a
  function like any other.
- Where a caller steps on and on from the last state, two graphs work in turns: the first reads buffer 0 and writes
  buffer 1, the second the reverse. The caller gets the buffer itself, and nothing is copied. A buffer is written again
  only after every tensor that shares its memory, views included, is gone; as long as one is kept, steps are copied.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from vwm.core.static_memory import Layout, StaticBuffer, copy_tensors, split_tensors, tensor_shapes

MAX_CAPTURED = 8
"""Number of captured functions and shapes; of more, the one that was used least recently is dropped."""
CALLS_BEFORE_CAPTURE = 3
"""A capture costs several steps. Shapes that pass by, as while the window of a new world fills, are not captured."""

Captured = TypeVar("Captured")
Step = Callable[[Any, Any], tuple[Any, Any]]
"""From a state and other arguments, both nested tensors, to the next state and further results."""


class CaptureBackend(Protocol):
    """What records the kernels that a function launches; ``CUDAGraphs`` does."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function that reads and writes fixed tensors, and return one that does the same again.

        Raises:
            RuntimeError: the function depends on values that are known only while it runs.
        """
        ...


class CUDAGraphs:
    """Captures CUDA graphs, all of which share their temporary memory, since they never run at the same time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """See ``CaptureBackend.capture``."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries make their plans in the first runs, which cannot be captured
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            function()
        return graph.replay


def make_capture_backend(accelerate: Literal["auto", "none"], device: torch.device) -> CaptureBackend | None:
    """Return what captures on a device by a setting of the user; None where nothing is captured, as on a CPU."""
    return CUDAGraphs() if accelerate == "auto" and device.type == "cuda" else None


def generators_kept() -> AbstractContextManager[None]:
    """Leave torch's default generators as they were: a capture draws numbers that plain calls would not draw."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


class _CapturedStep:
    """One function for one shape of its arguments.

    Args:
        step: the function.
        backend: what captures it.
        state, rest: the tensors of the arguments.
        layouts: what else the two are made of.
    """

    def __init__(
        self, step: Step, backend: CaptureBackend, state: list[Tensor], rest: list[Tensor], layouts: tuple[Layout, ...]
    ) -> None:
        self.step = step
        self.backend = backend
        self.layouts = layouts
        self.rest, self.source = StaticBuffer(rest), StaticBuffer(state)
        copy_tensors(self.rest.tensors, rest)
        copy_tensors(self.source.tensors, state)
        (after, self.state_layout), (results, self.result_layout) = (
            split_tensors(part) for part in self._compute(self.source)
        )
        self.target, self.results = StaticBuffer(after), StaticBuffer(results)
        self.replay = backend.capture(lambda: self._run(self.source, self.target))
        self.turns: tuple[StaticBuffer, ...] = ()
        self.replay_turn: list[Callable[[], None]] = []

    def _compute(self, source: StaticBuffer) -> tuple[Any, Any]:
        state, rest = (
            layout.join(part.tensors) for layout, part in zip(self.layouts, (source, self.rest), strict=True)
        )
        torch.clear_autocast_cache()  # the graph casts weights itself, as they are when it is launched
        result = self.step(state, rest)
        torch.clear_autocast_cache()  # casts in the graph's memory are for the graph alone
        return result

    def _run(self, source: StaticBuffer, target: StaticBuffer) -> None:
        """Compute a step from one buffer to another: what is captured."""
        after, results = self._compute(source)
        copy_tensors(target.tensors, split_tensors(after)[0])
        copy_tensors(self.results.tensors, split_tensors(results)[0])

    def __call__(self, state: list[Tensor], rest: list[Tensor]) -> tuple[Any, Any]:
        """Compute a step: tensors of the arguments in, nested values out."""
        copy_tensors(self.rest.tensors, rest)
        turn = self._turn(state)
        if turn is None:
            copy_tensors(self.source.tensors, state)
            self.replay()
            after = [tensor.clone() for tensor in self.target.tensors]
        else:
            self.replay_turn[turn]()
            after = self.turns[1 - turn].lend()
        return self.state_layout.join(after), self.result_layout.join(tensor.clone() for tensor in self.results.tensors)

    def _turn(self, state: list[Tensor]) -> int | None:
        """Return which of the two buffers the step can read, so that it writes the other one; None if none."""
        if not self.turns and tensor_shapes(self.source.tensors) == tensor_shapes(self.target.tensors):
            self._capture_turns()
        for turn, buffer in enumerate(self.turns):
            if buffer.holds(state):
                return turn if self.turns[1 - turn].is_free else None
        if self.turns and all(buffer.is_free for buffer in self.turns):
            copy_tensors(self.turns[0].tensors, state)
            return 0
        return None

    def _capture_turns(self) -> None:
        """Capture the two graphs that work in turns: the state after a step has the shapes of the one before."""
        first, second = StaticBuffer(self.source.tensors), StaticBuffer(self.source.tensors)
        for buffer in (first, second):
            copy_tensors(buffer.tensors, self.source.tensors)
        with generators_kept():
            self.replay_turn = [
                self.backend.capture(lambda: self._run(first, second)),
                self.backend.capture(lambda: self._run(second, first)),
            ]
        self.turns = (first, second)


class RecentCaptures(OrderedDict[Hashable, Captured]):
    """What was captured, by function and shapes; of more than a limit, the one that was used least recently is dropped.

    Args:
        limit: largest number of captures.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.calls: OrderedDict[Hashable, int] = OrderedDict()

    def keep(self, key: Hashable, captured: Captured) -> None:
        """Add a capture."""
        self[key] = captured
        if len(self) > self.limit:
            self.popitem(last=False)

    def is_frequent(self, key: Hashable) -> bool:
        """Count a call, and return whether it is time to capture; of many shapes, the oldest counts are forgotten."""
        self.calls[key] = self.calls.pop(key, 0) + 1
        if len(self.calls) > 16 * self.limit:
            self.calls.popitem(last=False)
        return self.calls[key] >= CALLS_BEFORE_CAPTURE


class CapturedSteps:
    """Runs steps from captured graphs; equal arguments give what the plain function gives.

    A function with the shapes of its arguments is captured at their third call. Where that fails, the function
    is computed plainly from then on, and one warning says why. Calls from several threads wait for each other.

    Args:
        backend: what captures.
    """

    def __init__(self, backend: CaptureBackend) -> None:
        self.backend = backend
        self.captured: RecentCaptures[_CapturedStep] = RecentCaptures(MAX_CAPTURED)
        self.failed: set[Any] = set()
        self.not_compiled: set[Any] = set()
        self.lock = threading.Lock()

    def __call__(self, name: Any, step: Step, state: Any, rest: Any, compiled: Step | None = None) -> tuple[Any, Any]:
        """Compute ``step(state, rest)``.

        Args:
            name: with the shapes of the tensors it identifies the function, also in warnings.
            step: the function; it depends on nothing but its arguments and weights.
            state: nested tensors.
            rest: the same; it may contain None.
            compiled: the same function with compiled parts, which is captured instead. It does not compute the shapes
                that pass by, for each of which it would have to be compiled.
        """
        if name in self.failed:
            return step(state, rest)
        (state_tensors, state_layout), (rest_tensors, rest_layout) = split_tensors(state), split_tensors(rest)
        layouts = (state_layout, rest_layout)
        autocast = _autocast_dtype([*state_tensors, *rest_tensors])
        key = (name, layouts, tensor_shapes(state_tensors), tensor_shapes(rest_tensors), autocast)
        with self.lock:
            captured = self.captured.get(key)
            try:
                if captured is None and self.captured.is_frequent(key):
                    with generators_kept():
                        captured = self._capture(name, step, compiled, (state_tensors, rest_tensors), layouts)
                    self.captured.keep(key, captured)
                if captured is not None:
                    self.captured.move_to_end(key)
                    return captured(state_tensors, rest_tensors)
            except RuntimeError as error:
                self.failed.add(name)
                warnings.warn(f"{name} is not accelerated: {type(error).__name__}: {error}", stacklevel=4)
        return step(state, rest)

    def _capture(
        self,
        name: Any,
        step: Step,
        compiled: Step | None,
        tensors: tuple[list[Tensor], list[Tensor]],
        layouts: tuple[Layout, ...],
    ) -> _CapturedStep:
        """Capture the compiled function where there is one, and the plain one where it cannot be compiled."""
        if compiled is not None and name not in self.not_compiled:
            try:
                return _CapturedStep(compiled, self.backend, *tensors, layouts)
            except RuntimeError as error:
                self.not_compiled.add(name)
                reason = " ".join(str(error).split("\n\n")[0].split())  # without the compiler's advice
                warnings.warn(f"{name} is not compiled: {type(error).__name__}: {reason}", stacklevel=5)
        return _CapturedStep(step, self.backend, *tensors, layouts)


def _autocast_dtype(tensors: list[Tensor]) -> torch.dtype | None:
    """Return the type to which autocast converts on the device of some tensors; None outside of autocast."""
    device = tensors[0].device.type if tensors else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
